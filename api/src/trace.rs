//! The way of a frame through the rules that are installed: what is asked, and what is answered.
//!
//! In: a frame in words, and where it comes in. Out: each rule that takes it, why that rule is
//! there, and where the frame ends. No frame is sent: the rules are walked.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    error::InvalidField,
    resources::{FlowState, VlanProto},
    types::{Id, MacAddr, Priority},
};

/// The most tags of a frame that is traced.
pub const TAGS_MAX: usize = 3;

/// An ethertype for local experiments (IEEE 802): what a frame carries that says nothing else.
pub const EXPERIMENTAL: u16 = 0x88b5;

/// A frame, and where it comes in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TraceRequest {
    /// Where it comes in.
    pub from: TraceFrom,
    /// Its destination address.
    pub dst_mac: MacAddr,
    /// Its source address; the port's first one where absent. Needed from an uplink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src_mac: Option<MacAddr>,
    /// Its VLAN tags, the outer one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 3)]
    pub tags: Vec<TraceTag>,
    /// What it carries.
    #[serde(default)]
    pub payload: TracePayload,
}

/// Where a frame comes in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TraceFrom {
    /// The guest of this port sends it.
    Port(Id),
    /// It comes from the wire of this adapter.
    Uplink(Id),
}

/// A VLAN tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TraceTag {
    /// The VLAN identifier, 0 to 4094; 0 is a priority tag.
    #[schema(maximum = 4094)]
    pub vid: u16,
    /// The tag protocol.
    #[serde(default)]
    pub proto: VlanProto,
    /// The priority.
    #[serde(default)]
    pub priority: Priority,
}

/// What a frame carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TracePayload {
    /// Something that no rule looks into, by its number: not IP, ARP or a tag.
    Ethertype(u16),
    /// An ARP message.
    Arp(TraceArp),
    /// An IP packet, v4 or v6.
    Ip(TraceIp),
}

impl Default for TracePayload {
    fn default() -> Self {
        Self::Ethertype(EXPERIMENTAL)
    }
}

/// An ARP message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TraceArp {
    /// What it is.
    #[serde(default)]
    pub op: ArpOp,
    /// The sender's IP address.
    #[schema(value_type = String, format = "ipv4", example = "192.0.2.1")]
    pub sender_ip: std::net::Ipv4Addr,
    /// The IP address that is asked for, or told.
    #[schema(value_type = String, format = "ipv4", example = "192.0.2.2")]
    pub target_ip: std::net::Ipv4Addr,
    /// The sender's MAC address; that of the frame where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender_mac: Option<MacAddr>,
}

/// What an ARP message is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ArpOp {
    /// It asks who has an address.
    #[default]
    Request,
    /// It says who has.
    Reply,
}

/// An IP packet; both addresses of one family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TraceIp {
    /// Source address.
    #[schema(value_type = String, example = "192.0.2.1")]
    pub src: IpAddr,
    /// Destination address.
    #[schema(value_type = String, example = "192.0.2.2")]
    pub dst: IpAddr,
    /// What the packet carries; protocol 253, for experiments, where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carries: Option<TraceTransport>,
}

/// What an IP packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TraceTransport {
    /// TCP.
    Tcp {
        /// Source port.
        #[schema(maximum = 65535)]
        src: u16,
        /// Destination port.
        #[schema(maximum = 65535)]
        dst: u16,
    },
    /// UDP.
    Udp {
        /// Source port.
        #[schema(maximum = 65535)]
        src: u16,
        /// Destination port.
        #[schema(maximum = 65535)]
        dst: u16,
    },
    /// ICMP, or ICMPv6 in an IPv6 packet.
    Icmp {
        /// Message type.
        #[schema(maximum = 255)]
        r#type: u8,
        /// Message code.
        #[serde(default)]
        #[schema(maximum = 255)]
        code: u8,
    },
}

impl TraceRequest {
    /// Checks everything that needs no knowledge of ports and adapters.
    ///
    /// # Errors
    /// The field that is wrong.
    pub fn validate(&self) -> Result<(), InvalidField> {
        let invalid = |field: &str, detail: String, remedy: &str| {
            Err(InvalidField { field: field.to_owned(), detail, remedy: remedy.to_owned() })
        };
        if self.src_mac.is_none() && matches!(self.from, TraceFrom::Uplink(_)) {
            let detail = "missing field `src_mac`: a wire has no address of its own".to_owned();
            return invalid("src_mac", detail, "add it");
        }
        if self.tags.len() > TAGS_MAX {
            let detail = format!("has {} entries", self.tags.len());
            return invalid("tags", detail, "use at most 3");
        }
        for (at, tag) in self.tags.iter().enumerate() {
            if tag.vid > 4094 {
                let detail = format!("{} is no VLAN id of a frame", tag.vid);
                return invalid(&format!("tags[{at}].vid"), detail, "use 0 to 4094");
            }
        }
        match &self.payload {
            TracePayload::Ethertype(number) => match number {
                0..0x600 => invalid(
                    "payload.ethertype",
                    format!("{number} is the length of a frame, not an ethertype"),
                    "use 1536 to 65535",
                ),
                0x0800 | 0x86dd => invalid(
                    "payload.ethertype",
                    "rules look into IP packets".to_owned(),
                    "write {\"ip\": {\"src\": …, \"dst\": …}}",
                ),
                0x0806 => invalid(
                    "payload.ethertype",
                    "rules look into ARP messages".to_owned(),
                    "write {\"arp\": {\"sender_ip\": …, \"target_ip\": …}}",
                ),
                0x8100 | 0x88a8 => invalid(
                    "payload.ethertype",
                    "this is a VLAN tag's".to_owned(),
                    "write it into tags",
                ),
                _ => Ok(()),
            },
            TracePayload::Ip(ip) if ip.src.is_ipv4() != ip.dst.is_ipv4() => invalid(
                "payload.ip.dst",
                format!("{} and {} are of two families", ip.src, ip.dst),
                "use IPv4 or IPv6 for both",
            ),
            TracePayload::Ip(_) | TracePayload::Arp(_) => Ok(()),
        }
    }
}

/// The way of a frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Trace {
    /// The adapter.
    pub adapter: Id,
    /// The netdev that receives it.
    pub netdev: String,
    /// The frame, in words.
    pub frame: String,
    /// What happened to it, in its order.
    pub steps: Vec<TraceStep>,
    /// Each copy that left.
    pub deliveries: Vec<TraceDelivery>,
    /// The frame as the host's own network stack gets it, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_host: Option<String>,
    /// Whether a rule dropped it, whatever copies it left.
    pub dropped: bool,
    /// What became of it, in a sentence.
    pub verdict: String,
    /// Why it may be otherwise in truth.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caveats: Vec<String>,
}

/// One step of a frame.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceStep {
    /// Who does it.
    pub by: TraceStage,
    /// The rule that took the frame; absent where none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<TraceRule>,
    /// What was done with the frame, each as `tc` writes actions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub actions: Vec<String>,
    /// What else is to be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Who carries out a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TraceStage {
    /// The adapter.
    Hardware,
    /// The kernel.
    #[default]
    Software,
}

/// A rule that took a frame, and why it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceRule {
    /// Its chain.
    pub chain: u32,
    /// Its prio.
    pub prio: u16,
    /// The rule in the syntax of `tc`.
    pub tc: String,
    /// Its state.
    pub state: FlowState,
    /// What it is for; absent where it is wanted no longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    /// The port that is the reason for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Id>,
    /// The network that is the reason for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Id>,
    /// The tag of that port's attachment to that network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<u16>,
}

/// A copy that left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceDelivery {
    /// Through this netdev.
    pub netdev: String,
    /// To this port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Id>,
    /// To the wire.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uplink: bool,
    /// Its tags, the outer one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<TraceTag>,
    /// The frame as it left, in words.
    pub frame: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> Option<String> {
        let request: TraceRequest = serde_json::from_str(text).unwrap();
        request.validate().err().map(|error| error.field)
    }

    #[test]
    fn what_is_no_frame_is_refused_by_its_field() {
        let frame = |rest: &str| {
            let head = r#"{"from": {"port": "a"}, "dst_mac": "02:00:00:00:00:01""#;
            wrong(&format!("{head}{rest}}}"))
        };
        assert_eq!(frame(""), None);
        assert_eq!(frame(r#", "tags": [{"vid": 0}, {"vid": 4094}]"#), None);
        for (rest, field) in [
            (r#", "tags": [{"vid": 1}, {"vid": 4095}]"#, "tags[1].vid"),
            (r#", "tags": [{"vid": 1}, {"vid": 1}, {"vid": 1}, {"vid": 1}]"#, "tags"),
            (r#", "payload": {"ethertype": 100}"#, "payload.ethertype"),
            (r#", "payload": {"ethertype": 2048}"#, "payload.ethertype"),
            (r#", "payload": {"ethertype": 33024}"#, "payload.ethertype"),
            (r#", "payload": {"ip": {"src": "192.0.2.1", "dst": "::1"}}"#, "payload.ip.dst"),
        ] {
            assert_eq!(frame(rest).as_deref(), Some(field), "{rest}");
        }
        let from_wire = r#"{"from": {"uplink": "a"}, "dst_mac": "02:00:00:00:00:01"}"#;
        assert_eq!(wrong(from_wire).as_deref(), Some("src_mac"));
    }
}
