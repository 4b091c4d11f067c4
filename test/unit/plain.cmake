# SPDX-License-Identifier: Apache-2.0
pp_unit_test(plain stream SOURCES ${CMAKE_CURRENT_LIST_DIR}/plain_stream_test.c DEPS pp_wire)
if(BUILD_TESTING)
  add_executable(plain_judge ${CMAKE_CURRENT_LIST_DIR}/plain_judge.c)
  target_link_libraries(plain_judge PRIVATE pp_options pp_wire)
  target_include_directories(test_plain_stream PRIVATE ${CMAKE_SOURCE_DIR}/test)

  find_package(Python3 COMPONENTS Interpreter REQUIRED)
  set(plain_seeds ${CMAKE_CURRENT_BINARY_DIR}/corpus/plain_stream)
  add_custom_command(OUTPUT ${plain_seeds}/requests
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/test/fuzz/unhex.py ${plain_seeds}
            ${CMAKE_SOURCE_DIR}/test/fuzz/corpus/plain_stream/seeds.hex
    DEPENDS ${CMAKE_SOURCE_DIR}/test/fuzz/unhex.py
            ${CMAKE_SOURCE_DIR}/test/fuzz/corpus/plain_stream/seeds.hex
    VERBATIM)
  add_custom_target(plain_stream_seeds DEPENDS ${plain_seeds}/requests)
  pp_fuzz_target(plain stream SOURCES ${CMAKE_SOURCE_DIR}/test/fuzz/plain_stream_fuzz.c
    DEPS pp_wire CORPUS ${plain_seeds})
  add_dependencies(fuzz_plain_stream plain_stream_seeds)
endif()
