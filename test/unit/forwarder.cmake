# SPDX-License-Identifier: Apache-2.0
pp_unit_test(forwarder edit SOURCES ${CMAKE_CURRENT_LIST_DIR}/forwarder_edit_test.c
  DEPS pp_relay pp_wire TIMEOUT 120)
