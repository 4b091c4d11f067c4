# SPDX-License-Identifier: Apache-2.0
pp_unit_test(rpc client SOURCES ${CMAKE_CURRENT_LIST_DIR}/rpc_client_test.c DEPS pp_wire
  ARGS $<TARGET_FILE:rpc_test_server>)
if(TARGET test_rpc_client)
  add_dependencies(test_rpc_client rpc_test_server)
endif()
pp_fuzz_target(rpc server DEPS pp_rpc PARSER
  "adaptor/rpc.c:reader_.*|frame_.*|request_refusal|call_.*|server_find|rpc_call_(?!fail|on_cancel).*|conn_(call|find_call|frame|serve|spent|send_error)")
