# SPDX-License-Identifier: Apache-2.0
pp_unit_test(base text SOURCES unit/base_text_test.c DEPS pp_base)
pp_unit_test(base options SOURCES unit/base_options_test.c DEPS pp_base)
pp_unit_test(base files SOURCES unit/base_files_test.c DEPS pp_base)
pp_unit_test(base harden SOURCES unit/base_harden_test.c DEPS pp_base)
