# SPDX-License-Identifier: Apache-2.0
"""What judges our requests: the vendor's own model (botocore), by a round trip.

A body is parsed by moto's query parser, which goes by botocore's model and leaves out what the model
does not have; the result is validated against the model and written again by botocore's serializer. A
misspelt or misplaced key is lost on the way, so that the bytes differ.
"""
import functools
import urllib.parse


class Refused(Exception):
    """The model does not have this request."""


@functools.lru_cache(maxsize=None)
def data_of(service):
    import botocore.loaders
    return botocore.loaders.Loader().load_service_model(service, "service-2")


@functools.lru_cache(maxsize=None)
def model_of(service):
    import botocore.model
    return botocore.model.ServiceModel(data_of(service), service)


def encode(value):
    return urllib.parse.quote(value, safe="-._~")


def round_trip_json(target, body, service="service-quotas"):
    """The same of AWS JSON: the header names the operation, the body is its parameters."""
    import json

    import botocore.serialize
    import botocore.validate
    model = model_of(service)
    prefix, _, name = target.partition(".")
    if prefix != model.metadata["targetPrefix"] or name not in model.operation_names:
        raise Refused(f"no such operation: {target}")
    operation = model.operation_model(name)
    parameters = json.loads(body)
    report = botocore.validate.ParamValidator().validate(parameters, operation.input_shape)
    if report.has_errors():
        raise Refused(report.generate_report())
    again = botocore.serialize.create_serializer("json", include_validation=False) \
        .serialize_to_request(parameters, operation)
    if json.loads(again["body"]) != parameters or again["headers"]["X-Amz-Target"] != target:
        raise Refused(f"sent {parameters}, the model has {again['body']}")


def text_of(value):
    """As botocore's HTTP layer writes a value of a form."""
    return value if isinstance(value, str) else value.decode() if isinstance(value, bytes) \
        else str(value)


def round_trip(body, service="ec2"):
    """Raises Refused unless botocore would have sent the same pairs, byte by byte."""
    import botocore.serialize
    import botocore.validate
    from moto.core.model import ServiceModel
    from moto.core.parse import EC2QueryParser, QueryParser
    model = model_of(service)
    body = body.decode() if isinstance(body, bytes) else body
    form = dict(urllib.parse.parse_qsl(body, keep_blank_values=True, strict_parsing=True))
    if len(form) != len(body.split("&")):
        raise Refused("a key stands there twice")
    try:
        operation = model.operation_model(form["Action"])
    except Exception as error:
        raise Refused(f"no such operation: {error}") from error
    protocol = model.metadata["protocol"]
    # moto's own reading of the same model, with what its parsers ask of a list.
    readable = ServiceModel(data_of(service), service).operation_model(form["Action"])
    parser = (EC2QueryParser if protocol == "ec2" else QueryParser)(readable)
    try:
        parsed = parser.parse({"values": form, "body": body, "headers": {}, "method": "POST",
                               "url_params": {}, "url_path": "/"})
    except Exception as error:
        raise Refused(f"not readable by the model: {error!r}") from error
    report = botocore.validate.ParamValidator().validate(parsed, operation.input_shape)
    if report.has_errors():
        raise Refused(report.generate_report())
    enums(operation.input_shape, parsed, form["Action"])
    again = botocore.serialize.create_serializer(protocol, include_validation=False) \
        .serialize_to_request(parsed, operation)["body"]
    written = sorted(f"{encode(k)}={encode(text_of(v))}" for k, v in again.items())
    sent = sorted(body.split("&"))
    if written != sent:
        raise Refused(f"sent but not in the model: {sorted(set(sent) - set(written))}; "
                      f"written otherwise: {sorted(set(written) - set(sent))}")


def enums(shape, value, where):
    """botocore leaves enums open; a value that is in none of them is a typing error of ours."""
    if shape.type_name == "structure":
        for name, member in value.items():
            enums(shape.members[name], member, f"{where}.{name}")
    elif shape.type_name == "list":
        for i, member in enumerate(value):
            enums(shape.member, member, f"{where}[{i}]")
    elif shape.type_name == "string" and getattr(shape, "enum", None) and value not in shape.enum:
        raise Refused(f"{where}: '{value}' is not one of the model's values")


def tree(body):
    """The form as nested dictionaries; the order of numbered lists is kept by their numbers."""
    root = {}
    for key, value in urllib.parse.parse_qsl(body, keep_blank_values=True, strict_parsing=True):
        node, parts = root, key.split(".")
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        assert parts[-1] not in node, key
        node[parts[-1]] = value
    return root
