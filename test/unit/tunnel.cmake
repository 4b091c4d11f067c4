# SPDX-License-Identifier: Apache-2.0
pp_unit_test(wire tls SOURCES ${CMAKE_CURRENT_LIST_DIR}/wire_tls_test.c DEPS pp_wire)
pp_unit_test(wire tunnel_frame SOURCES ${CMAKE_CURRENT_LIST_DIR}/wire_tunnel_frame_test.c
  DEPS pp_wire)
foreach(name cut engine hello hostile pump)
  pp_unit_test(tunnel ${name} SOURCES ${CMAKE_CURRENT_LIST_DIR}/tunnel_${name}_test.c
    DEPS pp_tunnel)
endforeach()
pp_fuzz_target(tunnel frame DEPS pp_wire 
  PARSER "lib/wire/tunnel_frame.c:tunnel_(header|data|ack|u64|reason)_decode|position_check|get_.*")
pp_fuzz_target(tunnel hello DEPS pp_wire
  PARSER "lib/wire/tunnel_frame.c:tunnel_(add_hello|hello_decode)|hello_.*")
