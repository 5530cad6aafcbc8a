"""The example of cdk/ deployed to an emulator of AWS, and `bastion up` against what was deployed, as far as the emulator
goes: it makes every resource but the types that it says it does not know, and it has no Session Manager.

    python3 cdk/test/deploy.py MINISTACK BASTION FOLDER_OF_TEMPLATES
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time

import boto3

REGION = "ap-northeast-1"
ENVIRONMENT = "prod"
# Types that ministack 1.5.33 refuses.
UNKNOWN = ("AWS::EC2::SecurityGroupEgress", "AWS::EC2::SecurityGroupIngress", "AWS::SSM::Document")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(what: str, seconds: float, ready):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (value := ready()) is not None:
            return value
        time.sleep(0.1)
    sys.exit(f"Error: no {what} within {seconds} s")


class Emulator:
    """ministack on loopback, without containers."""

    def __init__(self, program: str, folder: str):
        port = free_port()
        settings = {
            "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "IOT_MTLS_ENABLED": "0", "MINISTACK_REGION": REGION,
            "STATE_DIR": f"{folder}/state", "DOCKER_HOST": "unix:///nonexistent", "HOME": folder,
        }
        self.keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": REGION}
        self.endpoint = f"http://127.0.0.1:{port}"
        self.log = open(f"{folder}/emulator.log", "w")
        self.process = subprocess.Popen([program], env=os.environ | settings, stdout=self.log, stderr=self.log)
        wait_for("emulator", 60, lambda: True if socket.socket().connect_ex(("127.0.0.1", port)) == 0 else None)

    def client(self, service: str):
        return boto3.client(
            service, region_name=REGION, endpoint_url=self.endpoint, aws_access_key_id="test", aws_secret_access_key="test"
        )

    def deploy(self, name: str, template: dict) -> None:
        """As CDK does: by way of a bucket, because templates get larger than CloudFormation takes inline."""
        bucket, s3, cloudformation = "templates", self.client("s3"), self.client("cloudformation")
        if not s3.list_buckets()["Buckets"]:
            s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        s3.put_object(Bucket=bucket, Key=name, Body=json.dumps(template))
        url = f"{self.endpoint}/{bucket}/{name}"
        cloudformation.create_stack(StackName=name, TemplateURL=url, Capabilities=["CAPABILITY_NAMED_IAM"])

        def status():
            stack = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
            return None if stack["StackStatus"].endswith("IN_PROGRESS") else stack

        stack = wait_for(f"end of the deployment of {name}", 60, status)
        assert stack["StackStatus"] == "CREATE_COMPLETE", stack
        made = cloudformation.describe_stack_resources(StackName=name)["StackResources"]
        assert len(made) == len([one for one in template["Resources"].values() if "Condition" not in one]), made
        assert all(one["ResourceStatus"] == "CREATE_COMPLETE" for one in made), made


def databases(emulator: Emulator, bastion: dict) -> dict:
    """What the stack of the databases exports to the bastion's: its own types are unknown to the emulator."""
    ec2 = emulator.client("ec2")
    subnets = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"]]
    values = {
        "Port": "5432",
        "ResourceId": "cluster-ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        "Address": "orders.cluster-abc123.ap-northeast-1.rds.amazonaws.com",
        "Secret": "arn:aws:secretsmanager:ap-northeast-1:000000000000:secret:ledger-AbCdEf",
        "Subnet1": subnets[0],
        "Subnet2": subnets[1],
        "RefVpc": ec2.describe_vpcs()["Vpcs"][0]["VpcId"],
    }
    exports = sorted(set(re.findall(r'"Fn::ImportValue": "([^"]+)"', json.dumps(bastion))))

    def value(export: str) -> str:
        # An id of a security group is asked for by resources only that the emulator does not know.
        return next((value for part, value in values.items() if part in export), "sg-0a1b2c3d")

    return {
        "Resources": {"Nothing": {"Type": "AWS::SSM::Parameter", "Properties": {"Type": "String", "Value": "nothing"}}},
        "Outputs": {f"Export{at}": {"Value": value(name), "Export": {"Name": name}} for at, name in enumerate(exports)},
    }


def without_unknown(template: dict) -> dict:
    print(f"  not known to the emulator: {', '.join(UNKNOWN)}")
    resources = {name: one for name, one in template["Resources"].items() if one["Type"] not in UNKNOWN}
    return template | {"Resources": resources}


def up(emulator: Emulator, program: str, folder: str) -> None:
    """Starts a task of what was deployed and waits for an agent that never comes; then nothing may be left."""
    variables = {"AWS_ENDPOINT_URL": emulator.endpoint, "HOME": folder, "PATH": os.environ["PATH"]} | emulator.keys
    command = [program, "up", ENVIRONMENT, "--timeout", "10s"]
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, timeout=60)
    print("  " + done.stderr.strip().replace("\n", "\n  "))
    assert done.returncode == 1 and "ExecuteCommandAgent" in done.stderr, done
    ecs = emulator.client("ecs")
    cluster = f"bastion-{ENVIRONMENT}"
    assert ecs.list_tasks(cluster=cluster, desiredStatus="RUNNING")["taskArns"] == []
    (arn,) = ecs.list_tasks(cluster=cluster, desiredStatus="STOPPED")["taskArns"]
    (task,) = ecs.describe_tasks(cluster=cluster, tasks=[arn], include=["TAGS"])["tasks"]
    assert task["taskDefinitionArn"].endswith(f"/bastion-{ENVIRONMENT}-read:1"), task
    assert task["enableExecuteCommand"] and task["stoppedReason"] == "bastion up ended", task
    tags = {tag["key"]: tag["value"] for tag in task["tags"]}
    assert tags["bastion:env"] == ENVIRONMENT and tags["bastion:access"] == "read" and tags["bastion:user"], tags
    (container,) = task["overrides"]["containerOverrides"]
    assert [variable["name"] for variable in container["environment"]] == ["BASTION_OWNER"], container


def main(ministack: str, program: str, templates: str) -> None:
    with open(f"{templates}/BastionExample-{ENVIRONMENT}.template.json") as file:
        bastion = json.load(file)
    with tempfile.TemporaryDirectory(prefix="bastion-deploy-") as folder:
        emulator = Emulator(ministack, folder)
        try:
            ssm = emulator.client("ssm")
            # What `cdk bootstrap` leaves.
            ssm.put_parameter(Name="/cdk-bootstrap/hnb659fds/version", Value="21", Type="String")
            emulator.deploy("BastionExampleDatabases", databases(emulator, bastion))
            emulator.deploy(f"BastionExample-{ENVIRONMENT}", without_unknown(bastion))
            up(emulator, program, folder)
        finally:
            emulator.process.terminate()
            emulator.process.wait()
            emulator.log.close()
    print("deployed, and bastion up came as far as the emulator goes")


if __name__ == "__main__":
    main(*sys.argv[1:])
