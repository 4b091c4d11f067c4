# SPDX-License-Identifier: Apache-2.0
pp_unit_test(local provider TIMEOUT 120
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/local_provider_test.c DEPS pp_providers pp_test_world)
add_dependencies(test_local_provider peerpod-local-vm)
set_tests_properties(local.provider PROPERTIES SKIP_RETURN_CODE 77)
