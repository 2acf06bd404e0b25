//! Examples for the OpenAPI document, as values of the very types.
//!
//! In: nothing. Out: specs and resources that a reader of the document meets: one VM whose guest
//! VF takes part in a VLAN.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::declared::Declared;
use crate::{
    batch::{Applied, Batch, DryRun},
    error::ResourceKind,
    explain::Explanation,
    resources::{Adapter, EswitchChange, Flow, NetworkSpec, PortSpec, TornDown},
    snapshot::{Restored, Snapshot},
    trace::{Trace, TraceRequest},
};

/// An example as JSON, which by passing through its type is known to be one.
fn checked<T: DeserializeOwned + serde::Serialize>(value: Value) -> Value {
    #[expect(clippy::expect_used, reason = "constant input, read by the document's test")]
    let typed: T = serde_json::from_value(value).expect("an example of its type");
    #[expect(clippy::expect_used, reason = "these types have string keys only")]
    serde_json::to_value(typed).expect("a value that JSON can say")
}

fn condition(r#type: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": r#type, "status": status, "reason": reason, "message": message,
           "last_transition": "2026-11-22T15:04:05Z"})
}

/// The example's id of a kind.
pub(super) fn id(kind: ResourceKind) -> &'static str {
    match kind {
        ResourceKind::Network => "blue",
        ResourceKind::Port => "web-1",
        ResourceKind::Guest => "vm1",
        ResourceKind::Adapter => "pci-0000:03:00.0",
    }
}

/// A spec of each kind.
pub(super) fn spec<Spec: Declared>() -> Value {
    checked::<Spec>(match Spec::KIND {
        ResourceKind::Network => json!({
            "kind": {"vlan": {"vid": 100}},
            "reserved_macs": ["02:00:5e:00:00:01"],
        }),
        ResourceKind::Port => json!({
            "function": {"guest_vf": {"guest": "vm1", "device": "vf0"}},
            "attachments": [{"network": "blue"}, {"network": "storage", "tag": 20}],
            "guest_macs": {"max": 4, "allow": ["02:aa"]},
        }),
        ResourceKind::Guest | ResourceKind::Adapter => json!({
            "qmp": "/run/eswitchd/qmp/vm1.sock",
            "backings": {"vf0": {"vf": {"adapter": "pci-0000:03:00.0", "index": 0}}},
        }),
    })
}

/// A status of each kind.
pub(super) fn status<Spec: Declared>() -> Value {
    checked::<Spec::Status>(match Spec::KIND {
        ResourceKind::Network => json!({
            "ports": ["web-1"],
            "conditions": [condition("Programmed", "True", "Installed", "all flows are installed")],
        }),
        ResourceKind::Port => json!({
            "conditions": [
                condition("Bound", "True", "Backed", "guest VF vf0 of vm1 stands on VF 0"),
                condition("Programmed", "True", "Installed", "12 of 12 flows are installed"),
                condition("Offloaded", "True", "InHardware", "12 of 12 flows are in hardware"),
            ],
            "adapter": "pci-0000:03:00.0",
            "vf": 0,
            "representor": {"name": "enp3s0f0npf0vf0", "ifindex": 14},
            "mtu": {"representor": 1500, "uplink": 1500},
            "macs": ["02:aa:bb:cc:00:01"],
            "flows": {"in_hw": 12, "not_in_hw": 0, "refused": 0, "pending": 0},
            "event_to_programmed_us": 740,
            "events_programmed": 3,
            "statistics": {
                "age_ms": 2100,
                "received": {"packets": 18044, "bytes": 9120731},
                "sent": {"packets": 17310, "bytes": 2044120},
                "software": {
                    "received": {"packets": 4, "bytes": 240},
                    "sent": {"packets": 11, "bytes": 1180},
                },
                "dropped": {"spoofed_mac": {"packets": 3, "bytes": 180}},
            },
        }),
        ResourceKind::Guest | ResourceKind::Adapter => json!({
            "conditions": [condition("Connected", "True", "Greeted", "QMP is connected")],
            "pid": 4711,
            "qemu": "11.1.3",
            "run_state": "running",
            "functions": [
                {"device": "pf0", "enabled": true, "mac": "52:54:00:12:34:56",
                 "promiscuous": false, "filter_known": true},
                {"device": "vf0", "pf": "pf0", "enabled": true, "mac": "02:aa:bb:cc:00:01",
                 "promiscuous": false, "filter_known": true, "port": "web-1",
                 "backing": {"vf": {"adapter": "pci-0000:03:00.0", "index": 0}}},
            ],
        }),
    })
}

/// A resource of each kind.
pub(super) fn resource<Spec: Declared>() -> Value {
    json!({"id": id(Spec::KIND), "revision": 42, "spec": spec::<Spec>(),
           "status": status::<Spec>()})
}

/// An adapter.
pub(super) fn adapter() -> Value {
    checked::<Adapter>(json!({
        "id": id(ResourceKind::Adapter),
        "handle": "pci/0000:03:00.0",
        "driver": "mlx5_core",
        "mode": "switchdev",
        "switch_id": "1a2b3c0003ebc208",
        "uplink": {"name": "enp3s0f0np0", "ifindex": 4},
        "vfs": [
            {"index": 0, "representor": {"name": "enp3s0f0npf0vf0", "ifindex": 14},
             "port": "web-1"},
            {"index": 1, "representor": {"name": "enp3s0f0npf0vf1", "ifindex": 15}},
        ],
        "flows": {"in_hw": 15, "not_in_hw": 0, "refused": 0, "pending": 0},
        "foreign_filters": 0,
        "conditions": [condition("Programmed", "True", "Installed", "all flows are installed")],
    }))
}

/// What another shape of an eswitch means.
pub(super) fn eswitch_change(started: bool) -> Value {
    checked::<EswitchChange>(json!({
        "now": {"mode": "legacy", "num_vfs": 2},
        "then": {"mode": "switchdev", "num_vfs": 2},
        "steps": ["remove all VFs", "set the mode switchdev", "make 2 VFs"],
        "ports": [{"port": "web-1", "loses": ["nothing on this adapter keeps rates"]}],
        "in_use": ["port web-1 (VF 0)"],
        "started": started,
    }))
}

/// A snapshot.
pub(super) fn snapshot() -> Value {
    checked::<Snapshot>(json!({
        "format": 1,
        "revision": 42,
        "networks": [{"id": id(ResourceKind::Network), "created": 1, "number": 1,
                      "spec": spec::<NetworkSpec>()}],
        "ports": [{"id": id(ResourceKind::Port), "created": 2, "number": 1,
                   "spec": spec::<PortSpec>()}],
        "guests": [],
        "eswitches": [{"adapter": "pci-0000:03:00.0", "mode": "switchdev", "num_vfs": 4}],
        "addresses": [{"network": id(ResourceKind::Network), "mac": "02:aa:bb:cc:00:01",
                       "port": id(ResourceKind::Port)}],
    }))
}

/// What there is after a snapshot was restored.
pub(super) fn restored() -> Value {
    checked::<Restored>(json!({"revision": 43, "networks": 1, "ports": 1, "guests": 0}))
}

/// Many changes.
pub(super) fn batch() -> Value {
    checked::<Batch>(json!({
        "networks": [{"id": id(ResourceKind::Network), "spec": spec::<NetworkSpec>()}],
        "ports": [{"id": id(ResourceKind::Port), "spec": spec::<PortSpec>()}],
        "delete": {"ports": ["web-0"]},
    }))
}

/// What many changes have done.
pub(super) fn applied() -> Value {
    checked::<Applied>(json!({
        "revision": 44,
        "changes": [
            {"resource": "networks/blue", "outcome": "unchanged"},
            {"resource": "ports/web-1", "outcome": "created"},
            {"resource": "ports/web-0", "outcome": "deleted"},
        ],
    }))
}

/// What changes would come to.
pub(super) fn dry_run() -> Value {
    checked::<DryRun>(json!({
        "changes": [{"resource": "ports/web-1", "outcome": "deleted"}],
        "flows": {"added": 0, "changed": 2, "removed": 4},
        "flow_changes": [{
            "change": "removed",
            "adapter": id(ResourceKind::Adapter),
            "netdev": "enp3s0f0npf0vf0",
            "purpose": "admission of 02:aa:bb:cc:00:01",
            "port": "web-1",
            "network": "blue",
            "tc": "ingress chain 0 prio 6 protocol all flower src_mac 02:aa:bb:cc:00:01 \
                   action goto chain 64",
        }],
        "vf_changes": [],
        "conditions": [],
    }))
}

/// What a teardown has done.
pub(super) fn torn_down() -> Value {
    checked::<TornDown>(json!({"removed": 15, "netdevs": 3, "foreign": 1, "offload": 3}))
}

/// A flow.
pub(super) fn flow() -> Value {
    checked::<Flow>(json!({
        "adapter": id(ResourceKind::Adapter),
        "netdev": "enp3s0f0npf0vf0",
        "purpose": "admission of 02:aa:bb:cc:00:01",
        "port": "web-1",
        "network": "blue",
        "tc": "ingress chain 0 prio 2 protocol all flower src_mac 02:aa:bb:cc:00:01 \
               action goto chain 1",
        "state": "in_hw",
    }))
}

/// A frame that is to be traced.
pub(super) fn trace_request() -> Value {
    checked::<TraceRequest>(json!({
        "from": {"port": "web-1"},
        "dst_mac": "02:aa:bb:cc:00:02",
        "payload": {"ip": {"src": "192.0.2.1", "dst": "192.0.2.2",
                           "carries": {"icmp": {"type": 8}}}},
    }))
}

/// Its way.
pub(super) fn trace() -> Value {
    let rule = |chain: u32, prio: u16, tc: &str, purpose: &str| {
        json!({"chain": chain, "prio": prio, "tc": tc, "state": "in_hw", "purpose": purpose,
               "port": "web-1", "network": "blue"})
    };
    let admission = "ingress protocol all pref 60 chain 0 flower src_mac 02:aa:bb:cc:00:01 \
                     action goto chain 64";
    let unicast = "ingress protocol all pref 6 chain 64 flower dst_mac 02:aa:bb:cc:00:02 \
                   action mirred egress redirect dev enp3s0f0npf0vf1";
    let frame = "02:aa:bb:cc:00:01 > 02:aa:bb:cc:00:02, 192.0.2.1 > 192.0.2.2 ICMP type 8 code 0";
    checked::<Trace>(json!({
        "adapter": id(ResourceKind::Adapter),
        "netdev": "enp3s0f0npf0vf0",
        "frame": frame,
        "steps": [
            {"by": "hardware", "actions": ["goto chain 64"],
             "rule": rule(0, 60, admission, "admission of 02:aa:bb:cc:00:01")},
            {"by": "hardware", "actions": ["mirred egress redirect dev enp3s0f0npf0vf1"],
             "rule": rule(64, 6, unicast, "unicast to 02:aa:bb:cc:00:02")},
        ],
        "deliveries": [{"netdev": "enp3s0f0npf0vf1", "port": "web-2", "frame": frame}],
        "dropped": false,
        "verdict": "to port web-2 (enp3s0f0npf0vf1, untagged)",
    }))
}

/// How far a port has come.
pub(super) fn explanation() -> Value {
    let link = |link: &str, state: &str, message: &str| json!({"link": link, "state": state, "message": message});
    checked::<Explanation>(json!({
        "port": id(ResourceKind::Port),
        "links": [
            link("asked", "holds", "revision 42: attached to blue, storage (tag 20)"),
            link("seen", "broken", "the guest has not enabled `vf0` (sriov_numvfs in the guest)"),
            link("planned", "waiting", "it stands nowhere yet"),
            link("installed", "waiting", "nothing is planned yet"),
            link("in_hardware", "waiting", "nothing is planned yet"),
            link("hit", "waiting", "there are no rules that count"),
        ],
        "broken": "seen",
    }))
}
