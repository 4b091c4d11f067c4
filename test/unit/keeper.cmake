# SPDX-License-Identifier: Apache-2.0
pp_unit_test(keeper keeper SOURCES ${CMAKE_CURRENT_LIST_DIR}/keeper_keeper_test.c DEPS pp_relay
  ARGS $<TARGET_FILE:peerpod-keeper> TIMEOUT 60)
add_dependencies(test_keeper_keeper peerpod-keeper)
pp_unit_test(keeper store SOURCES ${CMAKE_CURRENT_LIST_DIR}/keeper_store_test.c DEPS pp_keeper)
pp_fuzz_target(keeper store DEPS pp_keeper PARSER keeper/store.c)
