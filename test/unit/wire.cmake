# SPDX-License-Identifier: Apache-2.0
pp_unit_test(wire recordings SOURCES ${CMAKE_CURRENT_LIST_DIR}/wire_recordings_test.c DEPS pp_wire)
pp_unit_test(wire ttrpc SOURCES ${CMAKE_CURRENT_LIST_DIR}/wire_ttrpc_test.c DEPS pp_wire)
if(TARGET test_wire_recordings)
  target_compile_definitions(test_wire_recordings PRIVATE
    PP_CORPUS_DEFAULT="${CMAKE_SOURCE_DIR}/../shared/corpus")
endif()

find_package(Python3 COMPONENTS Interpreter REQUIRED)
set(ttrpc_seeds ${CMAKE_CURRENT_BINARY_DIR}/corpus/ttrpc)
add_custom_command(OUTPUT ${ttrpc_seeds}/request
  COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/test/fuzz/unhex.py ${ttrpc_seeds}
          ${CMAKE_SOURCE_DIR}/test/fuzz/corpus/ttrpc/seeds.hex
  DEPENDS ${CMAKE_SOURCE_DIR}/test/fuzz/unhex.py
          ${CMAKE_SOURCE_DIR}/test/fuzz/corpus/ttrpc/seeds.hex
  VERBATIM)
add_custom_target(ttrpc_seeds DEPENDS ${ttrpc_seeds}/request)
pp_fuzz_target(wire ttrpc SOURCES ${CMAKE_SOURCE_DIR}/test/fuzz/wire_ttrpc_fuzz.c DEPS pp_wire
  CORPUS ${ttrpc_seeds})
add_dependencies(fuzz_wire_ttrpc ttrpc_seeds)
