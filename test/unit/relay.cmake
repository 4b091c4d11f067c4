# SPDX-License-Identifier: Apache-2.0
pp_unit_test(relay ring SOURCES ${CMAKE_CURRENT_LIST_DIR}/relay_ring_test.c DEPS pp_relay)
pp_unit_test(relay relay SOURCES ${CMAKE_CURRENT_LIST_DIR}/relay_relay_test.c DEPS pp_relay)
pp_unit_test(relay fdstore SOURCES ${CMAKE_CURRENT_LIST_DIR}/relay_fdstore_test.c DEPS pp_relay)
if(BUILD_TESTING)
  find_package(Python3 COMPONENTS Interpreter REQUIRED)
  set(relay_seeds ${CMAKE_CURRENT_BINARY_DIR}/corpus/relay_file)
  set(relay_seeds_hex ${CMAKE_SOURCE_DIR}/test/fuzz/corpus/relay_file/seeds.hex)
  add_custom_command(OUTPUT ${relay_seeds}/new
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/test/fuzz/unhex.py ${relay_seeds}
            ${relay_seeds_hex}
    DEPENDS ${CMAKE_SOURCE_DIR}/test/fuzz/unhex.py ${relay_seeds_hex} VERBATIM)
  add_custom_target(relay_seeds DEPENDS ${relay_seeds}/new)
  pp_fuzz_target(relay file SOURCES ${CMAKE_SOURCE_DIR}/test/fuzz/relay_file_fuzz.c
    DEPS pp_relay CORPUS ${relay_seeds})
  add_dependencies(fuzz_relay_file relay_seeds)
endif()
