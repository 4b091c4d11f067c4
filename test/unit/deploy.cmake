# SPDX-License-Identifier: Apache-2.0
pp_pytest(deploy entrypoint FILE unit/deploy_entrypoint_test.py)
