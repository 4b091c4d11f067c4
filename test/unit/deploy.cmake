# SPDX-License-Identifier: Apache-2.0
pp_pytest(deploy entrypoint FILE unit/deploy_entrypoint_test.py)
if(CMAKE_C_COMPILER_ID STREQUAL "GNU" AND NOT PP_SANITIZE)
  pp_pytest(deploy setups FILE unit/deploy_setups_test.py ISOLATED)
endif()
