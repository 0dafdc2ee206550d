"""grpcio-reflection's client asks a server what it has, and calls it without our generated code."""

from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from vlmpress_services.clients.retries import services
from vlmpress_services.serving.registry import SERVICES


def test_a_reflection_client_lists_every_service_method_and_field(server: Any) -> None:
    with grpc.insecure_channel(server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        infrastructure = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
        assert set(database.get_services()) == set(SERVICES.values()) | infrastructure
        pool = DescriptorPool(database)
        for service in services():
            found = pool.FindServiceByName(service.full_name)
            assert [method.name for method in found.methods] == [method.name for method in service.methods]
            for method, known in zip(found.methods, service.methods, strict=True):
                for side in ("input_type", "output_type"):
                    message, ours = getattr(method, side), getattr(known, side)
                    assert message.full_name == ours.full_name
                    fields = [(field.name, field.number, field.type) for field in message.fields]
                    assert fields == [(field.name, field.number, field.type) for field in ours.fields]


def test_a_call_from_nothing_but_reflection(server: Any) -> None:
    with grpc.insecure_channel(server.address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        method = pool.FindServiceByName(SERVICES["evaluation"]).methods_by_name["ScorePredictions"]
        make, read = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
        call = channel.unary_unary(
            f"/{SERVICES['evaluation']}/ScorePredictions",
            request_serializer=make.SerializeToString,
            response_deserializer=read.FromString,
        )
        request: Any = make()
        request.predictions.add(index=0, question_type="other", expected="red", answer="Red")
        assert call(request, timeout=30).score.accuracy == 1.0
