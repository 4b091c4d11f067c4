# SPDX-License-Identifier: Apache-2.0
if(BUILD_TESTING)
  add_executable(plain_judge ${CMAKE_CURRENT_LIST_DIR}/plain_judge.c)
  target_link_libraries(plain_judge PRIVATE pp_options pp_wire)
endif()
