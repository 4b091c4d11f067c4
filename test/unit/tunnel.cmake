# SPDX-License-Identifier: Apache-2.0
pp_unit_test(tunnel engine SOURCES ${CMAKE_CURRENT_LIST_DIR}/tunnel_engine_test.c DEPS pp_tunnel)
pp_unit_test(tunnel pump SOURCES ${CMAKE_CURRENT_LIST_DIR}/tunnel_pump_test.c DEPS pp_tunnel)
