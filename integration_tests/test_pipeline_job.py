"""The main job started over gRPC, on a real server, to its end."""

import grpc
import yaml

from vlmpress.job.v1 import job_pb2 as pb
from vlmpress.job.v1 import job_service_pb2 as service_pb
from vlmpress.job.v1 import job_service_pb2_grpc as service_grpc
from vlmpress_services.store.local import LocalStore

TIMEOUT_S = 300


def _seen(address: str, config: str) -> list[pb.Job]:
    with grpc.insecure_channel(address) as channel:
        jobs = service_grpc.JobServiceStub(channel)
        spec = pb.JobSpec(pipeline=pb.PipelineJob(config_yaml=config))
        made = jobs.CreateJob(service_pb.CreateJobRequest(spec=spec, request_id="once"), timeout=30).job
        request = service_pb.WatchJobRequest(job_id=made.job_id)
        return [response.job for response in jobs.WatchJob(request, timeout=TIMEOUT_S)]


def test_a_pipeline_job_ends_with_a_report_in_the_store(launch, main_job, tmp_path):
    server = launch(tmp_path / "store", "--services", "artifact,job")
    seen = _seen(server.address, yaml.safe_dump({**main_job, "runner": "local"}))
    job = seen[-1]
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.message
    store = LocalStore(tmp_path / "store")
    assert store.verify(job.result).manifest.kind == "report"
    assert len(store.list("evaluation")) == 6
    assert len(store.list("quantized_model")) == 1
    steps = [each.message for each in seen if each.message.startswith("step ")]
    # Reports come at most twice a second, the last of the work in any case.
    assert steps[-1] == "step 16 of 16: evaluation-edge_packed"
    assert len(steps) > 5
    assert [each.progress for each in seen] == sorted(each.progress for each in seen)


def test_a_bad_configuration_fails_the_job_and_says_why(launch, tmp_path):
    server = launch(tmp_path / "store", "--services", "artifact,job")
    job = _seen(server.address, "sed: 3")[-1]
    assert job.state == pb.JOB_STATE_FAILED
    assert "sed" in job.message
    assert "Traceback" not in job.message
