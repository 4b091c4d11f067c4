# SPDX-License-Identifier: Apache-2.0
foreach(name engine hello hostile pump)
  pp_unit_test(tunnel ${name} SOURCES ${CMAKE_CURRENT_LIST_DIR}/tunnel_${name}_test.c
    DEPS pp_tunnel)
endforeach()
