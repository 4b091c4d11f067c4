# SPDX-License-Identifier: Apache-2.0
pp_unit_test(relay ring SOURCES ${CMAKE_CURRENT_LIST_DIR}/relay_ring_test.c DEPS pp_relay)
pp_unit_test(relay relay SOURCES ${CMAKE_CURRENT_LIST_DIR}/relay_relay_test.c DEPS pp_relay)
pp_unit_test(relay fdstore SOURCES ${CMAKE_CURRENT_LIST_DIR}/relay_fdstore_test.c DEPS pp_relay)
pp_fuzz_target(relay file DEPS pp_relay 
  PARSER "lib/relay/relay.c:(?!relay_selftest|relay_create|create_in|test_|write_header).*")
pp_unit_test(relay fdtable SOURCES ${CMAKE_CURRENT_LIST_DIR}/relay_fdtable_test.c
  DEPS pp_relay Threads::Threads)
pp_fuzz_target(relay fdtable DEPS pp_relay PARSER "lib/relay/fdtable.c:(fdtable_apply|add|read_name)")
