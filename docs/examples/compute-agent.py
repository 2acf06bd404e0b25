#!/usr/bin/env python3
"""What a compute agent does with eswitchd for one Neutron port: plug, unplug, and both sides of a
live migration. Needs nothing but Python 3.

    compute-agent.py SOCKET plug PORT.json         declares the port, waits until the switch has it
    compute-agent.py SOCKET unplug PORT.json       takes it away, waits until the switch knows it no more
    compute-agent.py SOCKET expect PORT.json       destination: declares it, before the guest arrives
    compute-agent.py SOCKET arrived PORT.json      destination: waits, once the guest runs here

PORT.json is a port as Neutron has it, with its network's provider attributes under "network".
docs/integrations/openstack.md says what becomes of each field.

Every request is idempotent: after a failure of any kind, the same command again is right.
"""

import http.client
import json
import os
import socket
import sys
import time


class Problem(Exception):
    """A refusal: problem details, RFC 9457."""

    def __init__(self, body):
        super().__init__(body["detail"])
        self.body = body


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=40)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def ask(path, method, url, body=None):
    """One request; again while the daemon has too much to do."""
    while True:
        connection = UnixConnection(path)
        text = None if body is None else json.dumps(body)
        connection.request(method, url, text, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        if response.status < 300:
            return json.loads(answer) if answer else None
        problem = json.loads(answer)
        if problem["type"] != "/problems/overloaded":
            raise Problem(problem)
        time.sleep(problem["retry_after"])


def function(port):
    """What the port stands on."""
    profile = port["binding:profile"]
    if "guest_vf" in profile:
        # A VF that the guest makes itself, on the emulated PF that Nova gave it.
        return {"guest_vf": {"guest": port["device_id"], "device": profile["guest_vf"]}}
    slot = profile["pci_slot"]
    pf = profile.get("pf_pci_slot") or os.path.basename(
        os.readlink(f"/sys/bus/pci/devices/{slot}/physfn"))
    index = profile.get("vf_num")
    if index is None:
        index = next(n for n in range(256) if os.path.basename(
            os.readlink(f"/sys/bus/pci/devices/{pf}/virtfn{n}")) == slot)
    return {"vf": {"adapter": f"pci-{pf}", "index": index}}


def network(port):
    """A network's spec."""
    attributes = port["network"]
    kind = attributes["provider:network_type"]
    if kind == "flat":
        return {"kind": "flat"}
    if kind == "vlan":
        return {"kind": {"vlan": {"vid": attributes["provider:segmentation_id"]}}}
    raise SystemExit(f"networks of type {kind} are not for this switch")


def specs(port):
    """The networks and the port that a Neutron port comes to."""
    networks = {port["network_id"]: network(port)}
    attachments = [{"network": port["network_id"]}]
    for sub_port in port.get("trunk_details", {}).get("sub_ports", []):
        networks[sub_port["network_id"]] = network(sub_port)
        attachments.append(
            {"network": sub_port["network_id"], "tag": sub_port["segmentation_id"]})
    spec = {
        "function": function(port),
        "attachments": attachments,
        "macs": [port["mac_address"]],
        "admin_state": "up" if port.get("admin_state_up", True) else "down",
    }
    if port.get("port_security_enabled", True):
        spec["ips"] = [ip["ip_address"] for ip in port["fixed_ips"]]
        pairs = port.get("allowed_address_pairs", [])
        if spec["ips"] and pairs:
            spec["allowed_address_pairs"] = [
                {key: value for key, value in
                 (("mac", pair.get("mac_address")), ("ip", pair["ip_address"])) if value}
                for pair in pairs]
    limits = {rule["direction"]: rule["max_kbps"] * 1000 for rule in port.get("qos_rules", [])}
    if "egress" in limits:
        spec["qos"] = {"tx_max": limits["egress"]}
    return networks, spec


def declare(path, port, query):
    networks, spec = specs(port)
    batch = {
        "networks": [{"id": name, "spec": spec} for name, spec in networks.items()],
        "ports": [{"id": port["id"], "spec": spec}],
    }
    return ask(path, "POST", f"/v1/apply{query}", batch)


WAIT = "?wait=programmed&timeout=20"


def main():
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    path, command, file = sys.argv[1:]
    with open(file, encoding="utf-8") as text:
        port = json.load(text)
    if command in ("plug", "arrived"):
        declare(path, port, WAIT)
    elif command == "expect":
        declare(path, port, "")
    elif command == "unplug":
        try:
            ask(path, "DELETE", f"/v1/ports/{port['id']}{WAIT}")
        except Problem as problem:
            if problem.body["type"] != "/problems/not-found":
                raise
    else:
        raise SystemExit(__doc__)
    print(command, port["id"])


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        print(problem.body["detail"], *problem.body.get("reasons", []),
              problem.body.get("remedy", ""), sep="\n  ", file=sys.stderr)
        sys.exit(1)
