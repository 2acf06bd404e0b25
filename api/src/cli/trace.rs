//! `eswitchctl trace`: a frame's way through the installed rules, step by step.
//!
//! In: a frame in options. Out: each rule that takes it, why that is there, and where it ends.

use std::{
    io::{self, Write},
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use super::{CommandError, Exit, get, table::printable};
use crate::{
    client::Client,
    resources::FlowState,
    trace::{
        ArpOp, Trace, TraceArp, TraceFrom, TraceIp, TracePayload, TraceRequest, TraceRule,
        TraceStage, TraceStep, TraceTag, TraceTransport,
    },
    types::{Id, MacAddr},
};

/// A frame on a command line.
#[derive(Debug, clap::Args)]
pub(super) struct FrameArguments {
    /// Where it comes in: port/ID, uplink/ADAPTER, or uplink where one adapter has one
    #[arg(long, value_name = "PLACE")]
    from: Place,
    /// Its destination address
    #[arg(long, value_name = "MAC")]
    dst_mac: MacAddr,
    /// Its source address, where it is not the port's first one
    #[arg(long, value_name = "MAC")]
    src_mac: Option<MacAddr>,
    /// A VLAN tag; repeated: the outer one first
    #[arg(long, value_name = "VID", value_parser = clap::value_parser!(u16).range(0..=4094))]
    vlan: Vec<u16>,
    /// It asks by ARP, from this address for that one
    #[arg(long, value_name = "SENDER,TARGET", group = "carries")]
    arp: Option<Pair<Ipv4Addr>>,
    /// It is an ARP reply
    #[arg(long, requires = "arp")]
    reply: bool,
    /// It is an IP packet, v4 or v6
    #[arg(long, value_name = "SRC,DST", group = "carries")]
    ip: Option<Pair<IpAddr>>,
    /// It carries something else, by number
    #[arg(long, value_name = "NUMBER", group = "carries", value_parser = ethertype)]
    ethertype: Option<u16>,
    /// The packet carries TCP between these ports
    #[arg(long, value_name = "SRC,DST", group = "transport", requires = "ip")]
    tcp: Option<Pair<u16>>,
    /// The packet carries UDP between these ports
    #[arg(long, value_name = "SRC,DST", group = "transport", requires = "ip")]
    udp: Option<Pair<u16>>,
    /// The packet carries ICMP
    #[arg(long, value_name = "TYPE,CODE", group = "transport", requires = "ip")]
    icmp: Option<Pair<u8>>,
}

/// Where a frame comes in.
#[derive(Debug, Clone)]
enum Place {
    Port(Id),
    Uplink(Option<Id>),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id = |id: &str| id.parse().map_err(|error| format!("{error}"));
        match text.split_once('/') {
            Some(("port", port)) => id(port).map(Place::Port),
            Some(("uplink" | "adapter", adapter)) => id(adapter).map(|id| Place::Uplink(Some(id))),
            None if text == "uplink" => Ok(Place::Uplink(None)),
            _ => Err("write port/ID, uplink/ADAPTER or uplink".into()),
        }
    }
}

/// Two values with a comma between them.
#[derive(Debug, Clone, Copy)]
struct Pair<T>(T, T);

impl<T: FromStr> FromStr for Pair<T>
where
    T::Err: std::fmt::Display,
{
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let value = |text: &str| text.parse::<T>().map_err(|error| format!("`{text}`: {error}"));
        let (one, other) = text.split_once(',').ok_or("write two values with a comma between")?;
        Ok(Pair(value(one)?, value(other)?))
    }
}

fn ethertype(text: &str) -> Result<u16, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|error| error.to_string())
}

impl FrameArguments {
    async fn request(self, client: &Client) -> Result<TraceRequest, CommandError> {
        let from = match self.from {
            Place::Port(id) => TraceFrom::Port(id),
            Place::Uplink(Some(id)) => TraceFrom::Uplink(id),
            Place::Uplink(None) => TraceFrom::Uplink(only_uplink(client).await?),
        };
        let op = if self.reply { ArpOp::Reply } else { ArpOp::Request };
        let carries = match (self.tcp, self.udp, self.icmp) {
            (Some(Pair(src, dst)), _, _) => Some(TraceTransport::Tcp { src, dst }),
            (_, Some(Pair(src, dst)), _) => Some(TraceTransport::Udp { src, dst }),
            (_, _, Some(Pair(r#type, code))) => Some(TraceTransport::Icmp { r#type, code }),
            (None, None, None) => None,
        };
        let payload = match (self.arp, self.ip, self.ethertype) {
            (Some(Pair(sender_ip, target_ip)), _, _) => {
                TracePayload::Arp(TraceArp { op, sender_ip, target_ip, sender_mac: None })
            }
            (_, Some(Pair(src, dst)), _) => TracePayload::Ip(TraceIp { src, dst, carries }),
            (_, _, Some(number)) => TracePayload::Ethertype(number),
            (None, None, None) => TracePayload::default(),
        };
        let tag = |vid: &u16| TraceTag {
            vid: *vid,
            proto: Default::default(),
            priority: Default::default(),
        };
        let tags = self.vlan.iter().map(tag).collect();
        Ok(TraceRequest { from, dst_mac: self.dst_mac, src_mac: self.src_mac, tags, payload })
    }
}

async fn only_uplink(client: &Client) -> Result<Id, CommandError> {
    let adapters = client.adapters().await?;
    let mut with_uplink = adapters.into_iter().filter(|adapter| adapter.uplink.is_some());
    match (with_uplink.next(), with_uplink.next()) {
        (Some(only), None) => Ok(only.id),
        (None, _) => Err(CommandError::Document("no adapter has an uplink".into())),
        (Some(one), Some(other)) => Err(CommandError::Document(format!(
            "more than one adapter has an uplink: name one, uplink/{} or uplink/{}",
            one.id, other.id
        ))),
    }
}

pub(super) async fn trace(
    client: &Client,
    frame: FrameArguments,
    json: bool,
    out: &mut dyn Write,
) -> Result<Exit, CommandError> {
    let request = frame.request(client).await?;
    let trace = client.trace(&request).await?;
    match json {
        true => get::json(out, &trace)?,
        false => write(out, &trace)?,
    }
    Ok(Exit::Done)
}

fn write(out: &mut dyn Write, trace: &Trace) -> io::Result<()> {
    let Trace { adapter, netdev, frame, steps, verdict, caveats, .. } = trace;
    writeln!(out, "{}", printable(frame))?;
    writeln!(out, "comes in at {} of {adapter}", printable(netdev))?;
    for (number, step) in steps.iter().enumerate() {
        write_step(out, number + 1, netdev, step)?;
    }
    writeln!(out, "result: {}", printable(verdict))?;
    for caveat in caveats {
        writeln!(out, "but: {}", printable(caveat))?;
    }
    Ok(())
}

fn write_step(
    out: &mut dyn Write,
    number: usize,
    netdev: &str,
    step: &TraceStep,
) -> io::Result<()> {
    let by = match step.by {
        TraceStage::Hardware => "hardware",
        TraceStage::Software => "software",
    };
    if let Some(note) = &step.note {
        writeln!(out, "{number:2}. {by}: {}", printable(note))?;
    }
    let Some(rule) = &step.rule else { return Ok(()) };
    let TraceRule { chain, prio, tc, state, .. } = rule;
    let also = match (step.by, state) {
        (TraceStage::Software, FlowState::InHw) => " (in hardware, too)",
        _ => "",
    };
    let why = printable(&reason(rule)).into_owned();
    writeln!(out, "{number:2}. {by}: chain {chain} prio {prio}{also}: {why}")?;
    writeln!(out, "      dev {} {}", printable(netdev), printable(tc))?;
    for action in &step.actions {
        writeln!(out, "      -> {}", printable(action))?;
    }
    Ok(())
}

/// What a rule is for, and because of whom.
fn reason(rule: &TraceRule) -> String {
    let TraceRule { purpose, port, network, tag, .. } = rule;
    let Some(purpose) = purpose else { return "wanted no longer".to_owned() };
    let mut because = Vec::new();
    because.extend(port.as_ref().map(|port| format!("port {port}")));
    because.extend(network.as_ref().map(|network| match tag {
        None => format!("network {network}"),
        Some(tag) => format!("network {network} as tag {tag}"),
    }));
    match because.is_empty() {
        true => format!("{purpose} (on every port)"),
        false => format!("{purpose} ({})", because.join(", ")),
    }
}
