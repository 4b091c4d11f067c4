# SPDX-License-Identifier: Apache-2.0
foreach(name keeper handover)
  pp_unit_test(keeper ${name} SOURCES ${CMAKE_CURRENT_LIST_DIR}/keeper_${name}_test.c DEPS pp_relay
    ARGS $<TARGET_FILE:peerpod-keeper> TIMEOUT 60)
  add_dependencies(test_keeper_${name} peerpod-keeper)
endforeach()
# A tracer sees a sanitizer's own system calls as steps; the plain build has the real ones.
if(BUILD_TESTING AND NOT PP_SANITIZE)
  pp_unit_test(keeper kills SOURCES ${CMAKE_CURRENT_LIST_DIR}/keeper_kills_test.c
    DEPS pp_relay Threads::Threads ARGS $<TARGET_FILE:peerpod-keeper> TIMEOUT 120)
  add_dependencies(test_keeper_kills peerpod-keeper)
endif()
pp_fuzz_target(keeper peer DEPS pp_keeper PARSER "keeper/handover.c:(?!meet_again|handover_init|handover_late|handover_child_died|handover_settled|handover_relay).*")
