//! The way of a frame through the rules that the kernel holds.
//!
//! In: a frame in words, and where it comes in. Out: each rule that takes it and the reason why
//! that is there. The rules are read from the kernel for each question, off the owner's loop;
//! nothing is sent and nothing is changed.

use std::collections::BTreeMap;

use api::{
    error::{ApiError, InvalidField, ResourceKind},
    resources::{EswitchMode, FlowState, VlanProto},
    trace::{
        ArpOp, Trace, TraceArp, TraceDelivery, TraceFrom, TraceIp, TracePayload, TraceRequest,
        TraceRule, TraceStage, TraceStep, TraceTag, TraceTransport,
    },
    types::{Id, MacAddr, Priority},
};
use std::net::IpAddr;
use tc_flows::{
    Action, Body, Dump, EtherType, Frame, Hook, HwState, Ifindex, Kernel as _, Layer4, Mac,
    NetlinkKernel, Profile, Rule, RuleId, Step, Tag, Unmodelled, VlanId, VlanTpid, Walk, Why, walk,
    walk_two_stage,
};

use super::{Owner, status::with_names};
use crate::{
    daemon::FLOW_OWNER,
    plan::{Program, bind::Place, switchdev::FlowProgram},
    world::NetdevView,
};

/// Protocol number for experiments (RFC 3692).
const EXPERIMENTAL: u8 = 253;

/// A frame, and where it comes in.
#[derive(Debug)]
pub(super) struct Entrance {
    adapter: Id,
    netdev: NetdevView,
    frame: Frame,
    /// How the hardware behind the hook executes rules, where there is any.
    profile: Option<Profile>,
}

/// A frame that has gone its way.
#[derive(Debug)]
pub(super) struct Passed {
    entrance: Entrance,
    walk: Walk,
    /// Rules at the hook that are in hardware.
    in_hw: BTreeMap<RuleId, bool>,
    caveats: Vec<String>,
}

/// What the kernel holds at the ingress hook of a netdev. Blocks.
///
/// # Errors
/// [`ApiError::Internal`], where the kernel does not say.
pub(super) fn read_hook(ifindex: Ifindex) -> Result<Dump, ApiError> {
    let failed = |error: tc_flows::Error| ApiError::Internal(Box::new(error));
    let mut kernel = NetlinkKernel::open(FLOW_OWNER).map_err(failed)?;
    kernel.dump_consistent(Hook::ingress(ifindex)).map_err(failed)
}

impl Owner {
    /// Where a frame comes in, and what it is.
    ///
    /// # Errors
    /// There is no such port or adapter, it stands nowhere, or no rules are walked there.
    pub(super) fn entrance(&self, request: &TraceRequest) -> Result<Entrance, ApiError> {
        let (adapter, netdev, own) = match &request.from {
            TraceFrom::Port(id) => {
                let place = self.place_of(id)?;
                let plan = self.planner.plan().ports.get(id);
                let own = plan.and_then(|plan| plan.macs.first()).copied();
                (place.adapter.clone(), self.representor_of(place)?, own)
            }
            TraceFrom::Uplink(id) => (id.clone(), self.uplink_of(id)?, None),
        };
        let src = request.src_mac.or(own).ok_or_else(|| {
            ApiError::Invalid(InvalidField {
                field: "src_mac".into(),
                detail: "the port has no address that it may send from".into(),
                remedy: "name the address that the frame comes from".into(),
            })
        })?;
        let profile = match self.planner.plan().programs.get(&adapter) {
            Some(Program::Flows(program)) => {
                program.hardware.as_ref().map(|hardware| hardware.profile().clone())
            }
            _ => None,
        };
        Ok(Entrance { adapter, netdev, frame: frame(request, src), profile })
    }

    /// Where a port stands.
    pub(super) fn place_of(&self, id: &Id) -> Result<&Place, ApiError> {
        if !self.intent.ports.contains_key(id) {
            return Err(ApiError::NotFound { kind: ResourceKind::Port, id: id.clone() });
        }
        let place = self.planner.plan().ports.get(id).map(|plan| plan.place.as_ref());
        match place {
            Some(Ok(place)) => Ok(place),
            Some(Err(finding)) => Err(nowhere(
                format!("port `{id}` stands nowhere: {}", finding.message),
                format!("see what is missing: eswitchctl explain port {id}"),
            )),
            None => Err(nowhere(
                format!("port `{id}` is not planned yet"),
                "try again in a second".into(),
            )),
        }
    }

    fn representor_of(&self, place: &Place) -> Result<NetdevView, ApiError> {
        place.representor.clone().ok_or_else(|| {
            nowhere(
                format!("adapter `{}` switches by itself: there are no rules", place.adapter),
                "see the settings of its VFs: ip -d link show, or GET /v1/adapters/{id}".into(),
            )
        })
    }

    fn uplink_of(&self, id: &Id) -> Result<NetdevView, ApiError> {
        let view = self
            .world
            .adapters
            .get(id)
            .ok_or_else(|| ApiError::NotFound { kind: ResourceKind::Adapter, id: id.clone() })?;
        match (view.mode, &view.uplink) {
            (Some(EswitchMode::Switchdev | EswitchMode::Software), Some(uplink)) => {
                Ok(uplink.clone())
            }
            (Some(EswitchMode::Legacy), _) => Err(nowhere(
                format!("adapter `{id}` switches by itself: there are no rules"),
                "see the settings of its VFs: ip -d link show, or GET /v1/adapters/{id}".into(),
            )),
            _ => Err(nowhere(
                format!("adapter `{id}` has no uplink"),
                "trace from one of its ports".into(),
            )),
        }
    }

    /// A frame's way in words, with the reasons for the rules that it met.
    pub(super) fn told(&self, passed: Passed) -> Trace {
        let Passed { entrance, walk, in_hw, mut caveats } = passed;
        let Entrance { adapter, netdev, frame, profile } = entrance;
        let none = FlowProgram::default();
        let program = match self.planner.plan().programs.get(&adapter) {
            Some(Program::Flows(program)) => program,
            _ => &none,
        };
        let hook = Hook::ingress(netdev.ifindex);
        if self.adapters.get(&adapter).is_none_or(|state| !state.flows.is_settled(&hook)) {
            caveats.push("changes of these rules are on their way".into());
        }
        let mut by = match profile {
            Some(_) => TraceStage::Hardware,
            None => TraceStage::Software,
        };
        let mut steps: Vec<TraceStep> = Vec::new();
        for step in &walk.trace {
            let note = match step {
                Step::Matched(rule) => {
                    let state = match in_hw.get(rule.id()) {
                        Some(true) => FlowState::InHw,
                        _ => FlowState::NotInHw,
                    };
                    let rule = Some(self.reasoned(rule, state, program));
                    steps.push(TraceStep { by, rule, ..TraceStep::default() });
                    continue;
                }
                Step::Did(action) => {
                    let text = with_names(&action.to_string(), program);
                    if let Some(step) = steps.last_mut() {
                        step.actions.push(text);
                    }
                    continue;
                }
                Step::NoMatch(chain) => format!("no rule of chain {chain} takes it"),
                Step::TooManyGotos => "it met more gotos than the kernel follows".to_owned(),
                Step::HandedOver(handover) => {
                    by = TraceStage::Software;
                    let why = match handover.why {
                        Why::Miss(chain) => format!("no rule of chain {chain} there takes it"),
                        Why::Trap => "a rule there says so".to_owned(),
                        Why::Pass => "it is for the host".to_owned(),
                    };
                    format!("from hardware, since {why}; goes on in chain {}", handover.chain)
                }
            };
            steps.push(TraceStep { by, note: Some(note), ..TraceStep::default() });
        }
        let polices = |step: &Step| matches!(step, Step::Did(Action::Police(_)));
        if walk.trace.iter().any(polices) {
            caveats.push("rates are taken to be kept".into());
        }
        let deliveries = self.deliveries(&adapter, &walk, program);
        let verdict = verdict(&walk, &deliveries, steps.last());
        Trace {
            adapter,
            netdev: netdev.name,
            frame: words(&frame),
            steps,
            deliveries,
            to_host: walk.to_host.as_ref().map(words),
            dropped: walk.dropped,
            verdict,
            caveats,
        }
    }

    fn reasoned(&self, rule: &Rule, state: FlowState, program: &FlowProgram) -> TraceRule {
        let why = program.rules.get_noted(rule.id()).map(|(_, why)| why);
        let (port, network) =
            why.map(|why| (why.port.clone(), why.network.clone())).unwrap_or_default();
        let attachments = port
            .as_ref()
            .and_then(|port| self.intent.ports.get(port))
            .map(|port| port.spec.attachments.as_slice())
            .unwrap_or_default();
        let attachment = attachments.iter().find(|at| Some(&at.network) == network.as_ref());
        TraceRule {
            chain: rule.chain().get(),
            prio: rule.prio().get(),
            tc: with_names(&rule.to_string(), program),
            state,
            purpose: why.map(|why| why.purpose.to_string()),
            tag: attachment.and_then(|at| at.tag).map(|tag| tag.get()),
            port,
            network,
        }
    }

    fn deliveries(&self, adapter: &Id, walk: &Walk, program: &FlowProgram) -> Vec<TraceDelivery> {
        let plans = self.planner.plan().ports.iter();
        let here: BTreeMap<Ifindex, &Id> = plans
            .filter_map(|(id, plan)| {
                let place = plan.place.as_ref().ok().filter(|place| place.adapter == *adapter)?;
                Some((place.representor.as_ref()?.ifindex, id))
            })
            .collect();
        let uplink = self.world.adapters.get(adapter).and_then(|view| view.uplink.as_ref());
        let copies = walk.deliveries.iter();
        let copies = copies.map(|(to, frame)| TraceDelivery {
            netdev: match program.netdevs.get(to) {
                Some(netdev) => netdev.name.clone(),
                None => format!("if{to}"),
            },
            port: here.get(to).map(|id| (*id).clone()),
            uplink: uplink.is_some_and(|uplink| uplink.ifindex == *to),
            tags: frame.tags.iter().map(tag).collect(),
            frame: words(frame),
        });
        copies.collect()
    }
}

impl Entrance {
    /// The netdev whose hook the frame meets.
    pub(super) const fn ifindex(&self) -> Ifindex {
        self.netdev.ifindex
    }

    /// The frame's way through what the kernel holds.
    pub(super) fn pass(self, dump: &Dump) -> Passed {
        let hook = Hook::ingress(self.netdev.ifindex);
        let rules = || dump.own.iter().map(|own| &own.rule);
        let in_hw: BTreeMap<RuleId, bool> =
            dump.own.iter().map(|own| (own.rule.id().clone(), own.hw == HwState::InHw)).collect();
        let walk = match &self.profile {
            Some(profile) => {
                let held = |rule: &Rule| in_hw.get(rule.id()) == Some(&true);
                walk_two_stage(rules(), held, profile, hook, &self.frame).together()
            }
            None => walk(rules(), hook, &self.frame),
        };
        let mut caveats = Vec::new();
        if !dump.hook_present {
            caveats.push(format!("{} has no ingress hook: nothing is there", self.netdev.name));
        }
        let (foreign, unreadable) = (dump.foreign.len(), dump.unreadable_own.len());
        if foreign > 0 {
            caveats.push(format!("{foreign} filters of others are there and not walked"));
        }
        if unreadable > 0 {
            caveats.push(format!(
                "{unreadable} rules of the daemon are not as it made them, and not walked"
            ));
        }
        caveats.extend(walk.unmodelled.as_ref().map(|what| match what {
            Unmodelled::Action(action) => format!("what `{action}` does cannot be told"),
            Unmodelled::Key(what) | Unmodelled::Hardware(what) => {
                format!("the way goes on, depending on what cannot be told: {what}")
            }
        }));
        Passed { entrance: self, walk, in_hw, caveats }
    }
}

/// What became of a frame, in a sentence.
fn verdict(walk: &Walk, deliveries: &[TraceDelivery], last: Option<&TraceStep>) -> String {
    let mut ends: Vec<String> = deliveries
        .iter()
        .map(|to| {
            let tags = match to.tags.as_slice() {
                [] => "untagged".to_owned(),
                tags => {
                    let vids: Vec<String> = tags.iter().map(|tag| tag.vid.to_string()).collect();
                    format!("with tag {}", vids.join(" in "))
                }
            };
            match (&to.port, to.uplink) {
                (Some(port), _) => format!("to port {port} ({}, {tags})", to.netdev),
                (None, true) => format!("to the wire ({}, {tags})", to.netdev),
                (None, false) => format!("to {} ({tags})", to.netdev),
            }
        })
        .collect();
    ends.extend(walk.to_host.as_ref().map(|_| "to the host's own network stack".to_owned()));
    if walk.unmodelled.is_some() {
        ends.push("and on to where cannot be told".to_owned());
    }
    match ends.is_empty() {
        false => ends.join(", "),
        true => {
            let purpose = last.and_then(|step| step.rule.as_ref()?.purpose.as_deref());
            match purpose {
                Some(purpose) => format!("dropped: {purpose}"),
                None => "dropped".to_owned(),
            }
        }
    }
}

fn nowhere(detail: String, remedy: String) -> ApiError {
    ApiError::Conflict { detail, blockers: Vec::new(), remedy }
}

// ---------------------------------------------------------------- frames

/// The frame that is asked about.
fn frame(request: &TraceRequest, src: MacAddr) -> Frame {
    let (dst, src) = (Mac(request.dst_mac.0), Mac(src.0));
    let opaque =
        |number: u16| Frame { ethertype: number, ..Frame::opaque(dst, src, EtherType::ARP) };
    let mut frame = match &request.payload {
        TracePayload::Ethertype(number) => opaque(*number),
        TracePayload::Arp(arp) => opaque(EtherType::ARP.get()).with_body(arp_body(arp, src)),
        TracePayload::Ip(ip) => opaque(EtherType::IPV4.get()).with_body(ip_body(ip)),
    };
    frame.tags = request.tags.iter().filter_map(asked_tag).collect();
    frame
}

fn arp_body(arp: &TraceArp, src: Mac) -> Body {
    Body::Arp {
        op: match arp.op {
            ArpOp::Request => 1,
            ArpOp::Reply => 2,
        },
        sha: arp.sender_mac.map_or(src, |mac| Mac(mac.0)),
        sip: arp.sender_ip,
        tha: Mac([0; 6]),
        tip: arp.target_ip,
    }
}

fn ip_body(ip: &TraceIp) -> Body {
    let layer4 = match ip.carries {
        None => Layer4::Other(EXPERIMENTAL),
        Some(TraceTransport::Tcp { src, dst }) => Layer4::Tcp { src, dst, flags: 0x02 },
        Some(TraceTransport::Udp { src, dst }) => Layer4::Udp { src, dst },
        Some(TraceTransport::Icmp { r#type, code }) => Layer4::Icmp { kind: r#type, code },
    };
    match (ip.src, ip.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => Body::ipv4(src, dst, layer4),
        (IpAddr::V6(src), IpAddr::V6(dst)) => Body::ipv6(src, dst, layer4),
        // Refused before.
        _ => Body::Opaque,
    }
}

fn asked_tag(tag: &TraceTag) -> Option<Tag> {
    let tpid = match tag.proto {
        VlanProto::Dot1Q => VlanTpid::Dot1Q,
        VlanProto::Dot1Ad => VlanTpid::Dot1Ad,
    };
    Some(Tag { tpid, vid: VlanId::new(tag.vid)?, pcp: tag.priority.get() })
}

fn tag(tag: &Tag) -> TraceTag {
    TraceTag {
        vid: tag.vid.get(),
        proto: match tag.tpid {
            VlanTpid::Dot1Q => VlanProto::Dot1Q,
            VlanTpid::Dot1Ad => VlanProto::Dot1Ad,
        },
        priority: Priority::try_from(tag.pcp).unwrap_or_default(),
    }
}

/// A frame in a line, much as tcpdump writes it.
fn words(frame: &Frame) -> String {
    let mut words = format!("{} > {}", frame.src, frame.dst);
    for tag in &frame.tags {
        words.push_str(&format!(", {} vlan {} p {}", tag.tpid, tag.vid, tag.pcp));
    }
    words.push_str(&match frame.body {
        Body::Arp { op: 2, sha, sip, .. } => format!(", ARP {sip} is-at {sha}"),
        Body::Arp { sip, tip, .. } => format!(", ARP who-has {tip} tell {sip}"),
        Body::Ipv4 { src, dst, layer4, .. } => format!(", {src} > {dst} {}", transport(layer4)),
        Body::Ipv6 { src, dst, layer4, .. } => format!(", {src} > {dst} {}", transport(layer4)),
        _ => format!(", ethertype {:#06x}", frame.ethertype),
    });
    words
}

fn transport(layer4: Layer4) -> String {
    match layer4 {
        Layer4::Tcp { src, dst, .. } => format!("TCP {src} > {dst}"),
        Layer4::Udp { src, dst } => format!("UDP {src} > {dst}"),
        Layer4::Icmp { kind, code } => format!("ICMP type {kind} code {code}"),
        other => format!("protocol {}", other.proto(true)),
    }
}
