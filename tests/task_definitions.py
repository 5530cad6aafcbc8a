"""Task definitions as ECS takes them: against the service model of the AWS SDK, and registered with moto.

    scripts/setup test && .tools/python/bin/python tests/task_definitions.py
"""

import json
import pathlib
import string
import sys

import boto3
from botocore.validate import ParamValidator
from moto import mock_aws

FOLDER = pathlib.Path(__file__).parent.parent / "task-definitions"
# Sizes that Fargate has, in MiB by CPU units (ECS Developer Guide, task definition parameters for Fargate, task size).
FARGATE_MEMORY = {"256": range(512, 2049, 512), "512": range(1024, 4097, 1024), "1024": range(2048, 8193, 1024)}


def values() -> dict[str, str]:
    lines = (FOLDER / "example.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def problems_of(definition: dict, ecs) -> list[str]:
    shape = ecs.meta.service_model.operation_model("RegisterTaskDefinition").input_shape
    found = []
    # Missing, unknown and mistyped parameters, by the model that the AWS CLI uses too.
    report = ParamValidator().validate(definition, shape)
    if report.has_errors():
        found.append(report.generate_report())
    if int(definition["memory"]) not in FARGATE_MEMORY[definition["cpu"]]:
        found.append(f"Fargate has no {definition['cpu']} CPU units with {definition['memory']} MiB")
    enums = {
        "dependsOn.condition": [c["condition"] for d in definition["containerDefinitions"] for c in d.get("dependsOn", [])],
        "cpuArchitecture": [definition["runtimePlatform"]["cpuArchitecture"]],
        "logDriver": [d["logConfiguration"]["logDriver"] for d in definition["containerDefinitions"]],
    }
    # ParamValidator does not look at enums.
    known = {
        "dependsOn.condition": "ContainerCondition",
        "cpuArchitecture": "CPUArchitecture",
        "logDriver": "LogDriver",
    }
    for where, used in enums.items():
        allowed = ecs.meta.service_model.shape_for(known[where]).enum
        found += [f"{where} is {value}, not one of {', '.join(allowed)}" for value in used if value not in allowed]
    for container in definition["containerDefinitions"]:
        for variable in container.get("environment", []):
            config = json.loads(variable["value"]) if variable["name"] == "BASTION_CONFIG" else None
            # The launcher compares both with what was asked for, and asks for this family.
            wanted = config and f"bastion-{config.get('env')}-{config.get('access')}"
            if config and definition["family"].startswith("bastion-") and definition["family"] != wanted:
                found.append(f"family {definition['family']} and BASTION_CONFIG, of {wanted}, are not of one access level")
    if found:
        return found
    registered = ecs.register_task_definition(**definition)["taskDefinition"]
    found += [f"{key} was lost" for key in definition if key not in registered]
    if len(registered["containerDefinitions"]) != len(definition["containerDefinitions"]):
        found.append("a container was lost")
    return found


@mock_aws
def main() -> int:
    credentials = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    ecs = boto3.client("ecs", region_name=values()["REGION"], **credentials)
    failed = False
    files = sorted(FOLDER.glob("*.json"))
    assert files, f"no task definition in {FOLDER}"
    for file in files:
        # A name without a value is a KeyError.
        text = string.Template(file.read_text()).substitute(values())
        for problem in problems_of(json.loads(text), ecs):
            failed = True
            print(f"{file.name}: {problem}", file=sys.stderr)
    if not failed:
        print(f"{', '.join(file.name for file in files)}: valid, and registered with moto")
    return failed


if __name__ == "__main__":
    sys.exit(main())
