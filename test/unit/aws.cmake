# SPDX-License-Identifier: Apache-2.0
pp_unit_test(aws sigv4 SOURCES ${CMAKE_CURRENT_LIST_DIR}/aws_sigv4_test.c
  DEPS pp_providers PkgConfig::OPENSSL)
if(BUILD_TESTING)
  target_compile_definitions(test_aws_sigv4 PRIVATE
    PP_CORPUS_DEFAULT="${CMAKE_SOURCE_DIR}/../shared/corpus")
endif()
pp_unit_test(aws client SOURCES ${CMAKE_CURRENT_LIST_DIR}/aws_client_test.c
  DEPS pp_providers PkgConfig::OPENSSL)
if(BUILD_TESTING)
  add_executable(aws_judge ${CMAKE_CURRENT_LIST_DIR}/aws_judge.c)
  target_link_libraries(aws_judge PRIVATE pp_options pp_providers)
endif()
# What threads do to each other in it is aws.client's business.
if(NOT PP_SANITIZE STREQUAL "tsan")
  pp_pytest(aws credentials FILE unit/aws_credentials_test.py ISOLATED TIMEOUT 120)
endif()
pp_fuzz_target(aws credentials DEPS pp_providers
  PARSER "providers/aws/credentials.c:good_part|key_make|json_refusal|credentials_parse_json")
pp_fuzz_target(aws profile DEPS pp_providers
  PARSER "providers/aws/profile.c:(?!profiles_load|file_add|aws_profile).*")
