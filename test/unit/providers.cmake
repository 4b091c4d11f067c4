# SPDX-License-Identifier: Apache-2.0
pp_unit_test(providers picker SOURCES ${CMAKE_CURRENT_LIST_DIR}/providers_picker_test.c
  DEPS pp_providers)
