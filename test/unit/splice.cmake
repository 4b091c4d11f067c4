# SPDX-License-Identifier: Apache-2.0
pp_unit_test(wire splice SOURCES ${CMAKE_CURRENT_LIST_DIR}/wire_splice_test.c DEPS pp_wire)
if(BUILD_TESTING)
  target_compile_definitions(test_wire_splice PRIVATE
    PP_CORPUS="${CMAKE_SOURCE_DIR}/../shared/corpus")
endif()
pp_fuzz_target(wire splice DEPS pp_wire PARSER lib/wire/splice.c)
