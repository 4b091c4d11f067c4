# SPDX-License-Identifier: Apache-2.0
pp_unit_test(plain stream SOURCES ${CMAKE_CURRENT_LIST_DIR}/plain_stream_test.c DEPS pp_wire)
pp_unit_test(plain link SOURCES ${CMAKE_CURRENT_LIST_DIR}/plain_link_test.c DEPS pp_tunnel)
if(BUILD_TESTING)
  add_executable(plain_judge ${CMAKE_CURRENT_LIST_DIR}/plain_judge.c)
  target_link_libraries(plain_judge PRIVATE pp_options pp_wire)
  target_include_directories(test_plain_stream PRIVATE ${CMAKE_SOURCE_DIR}/test)
endif()
pp_fuzz_target(plain stream DEPS pp_wire PARSER lib/wire/splice_stream.c)
