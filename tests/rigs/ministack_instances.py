"""MiniStack with N instances (i-00000000000000001, ...) that are processes of this machine instead of containers, so that
its own SendCommand and GetCommandInvocation truly execute. The port is GATEWAY_PORT.
usage: ministack_instances.py N
"""
import subprocess, sys

count = int(sys.argv[1])
sys.argv = sys.argv[:1]
from ministack.services import ec2

ids = ["i-%017x" % k for k in range(1, count + 1)]


def run(instance, argv):
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True)
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


ec2.exec_in_instance_blocking = run
ec2.instance_is_managed = lambda instance: instance in ids
for instance in ids:
    ec2._instances[instance] = {
        "InstanceId": instance, "State": {"Code": 16, "Name": "running"}, "_ssm_managed": True,
        "PrivateIpAddress": "127.0.0.1", "PrivateDnsName": instance,
    }
from ministack import app

app.main()
