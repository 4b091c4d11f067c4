# SPDX-License-Identifier: Apache-2.0
pp_unit_test(wire splice SOURCES ${CMAKE_CURRENT_LIST_DIR}/wire_splice_test.c DEPS pp_wire)
if(BUILD_TESTING)
  target_compile_definitions(test_wire_splice PRIVATE
    PP_CORPUS="${CMAKE_SOURCE_DIR}/../shared/corpus")
  find_package(Python3 COMPONENTS Interpreter)
  set(splice_seeds ${CMAKE_CURRENT_BINARY_DIR}/corpus/splice)
  add_custom_command(OUTPUT ${splice_seeds}/container
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/test/fuzz/unhex.py ${splice_seeds}
            ${CMAKE_SOURCE_DIR}/test/fuzz/corpus/splice/seeds.hex
    DEPENDS ${CMAKE_SOURCE_DIR}/test/fuzz/unhex.py
            ${CMAKE_SOURCE_DIR}/test/fuzz/corpus/splice/seeds.hex
    VERBATIM)
  add_custom_target(splice_seeds DEPENDS ${splice_seeds}/container)
  pp_fuzz_target(wire splice SOURCES ${CMAKE_SOURCE_DIR}/test/fuzz/wire_splice_fuzz.c
    DEPS pp_wire CORPUS ${splice_seeds})
  target_include_directories(fuzz_wire_splice PRIVATE ${CMAKE_SOURCE_DIR}/test)
  add_dependencies(fuzz_wire_splice splice_seeds)
  if(TARGET fuzz_wire_splice_long)
    target_include_directories(fuzz_wire_splice_long PRIVATE ${CMAKE_SOURCE_DIR}/test)
  endif()
endif()
