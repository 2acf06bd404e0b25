//! The QEMU Machine Protocol: one JSON object a line (QEMU's `docs/interop/qmp-spec.rst`).
//!
//! In: lines of a QMP socket. Out: [`Message`]s; and [`Command`]s as bytes. [`Command`] is the
//! allow-list: what is not one of its variants cannot be sent. Commands whose names begin with `x-`
//! and the human monitor never belong here: some of them abort QEMU. No I/O.

use serde::Deserialize;
use serde_json::value::RawValue;

/// The id of a QEMU device, as in `-device virtio-net-pci,id=vf0`.
///
/// QEMU's rule (`id_wellformed` in `util/id.c`): a letter, then letters, digits, `-`, `.`, `_`; so
/// it is one component of a path below `/machine/peripheral`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DeviceId(String);

impl DeviceId {
    /// Checks an id; `None` where QEMU would not have taken it, or where it is longer than 128.
    pub(crate) fn new(text: &str) -> Option<Self> {
        let mut bytes = text.bytes();
        let first = bytes.next()?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        (first.is_ascii_alphabetic() && bytes.all(allowed) && text.len() <= 128)
            .then(|| DeviceId(text.to_owned()))
    }

    /// The id as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The properties of devices that may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Property {
    /// `sriov-pf`: the device id of the emulated PF; empty on what is no VF.
    SriovPf,
    /// `netdev`: the id of the network backend.
    Netdev,
}

impl Property {
    fn name(self) -> &'static str {
        match self {
            Self::SriovPf => "sriov-pf",
            Self::Netdev => "netdev",
        }
    }
}

/// Every command that may be sent. All only read, and all are stable in QEMU's interface.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Command {
    /// Leaves negotiation mode; from here on events come.
    NegotiateCapabilities,
    /// The run state.
    QueryStatus,
    /// The PCI devices and where their BARs are.
    QueryPci,
    /// The receive filters of all NICs; arms NIC_RX_FILTER_CHANGED for each.
    QueryRxFilters,
    /// The receive filter of one NIC; arms NIC_RX_FILTER_CHANGED for it.
    QueryRxFilter(DeviceId),
    /// One property of one device.
    QomGet(DeviceId, Property),
}

impl Command {
    /// The command's name in the protocol.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::NegotiateCapabilities => "qmp_capabilities",
            Self::QueryStatus => "query-status",
            Self::QueryPci => "query-pci",
            Self::QueryRxFilters | Self::QueryRxFilter(_) => "query-rx-filter",
            Self::QomGet(..) => "qom-get",
        }
    }

    /// Every command, about each of these devices where it is about one.
    pub(crate) fn every(devices: &[DeviceId]) -> Vec<Command> {
        let mut all = vec![
            Self::NegotiateCapabilities,
            Self::QueryStatus,
            Self::QueryPci,
            Self::QueryRxFilters,
        ];
        for device in devices {
            all.push(Self::QueryRxFilter(device.clone()));
            for property in [Property::SriovPf, Property::Netdev] {
                all.push(Self::QomGet(device.clone(), property));
            }
        }
        all
    }

    /// Appends the command as one line.
    pub(crate) fn encode(&self, id: u64, out: &mut Vec<u8>) {
        // Every text in it is either a constant or a checked device id: nothing needs escaping.
        let arguments = match self {
            Self::QueryRxFilter(device) => {
                format!(r#","arguments":{{"name":"{}"}}"#, device.as_str())
            }
            Self::QomGet(device, property) => format!(
                r#","arguments":{{"path":"/machine/peripheral/{}","property":"{}"}}"#,
                device.as_str(),
                property.name()
            ),
            _ => String::new(),
        };
        let line = format!("{{\"execute\":\"{}\"{arguments},\"id\":{id}}}\r\n", self.name());
        out.extend_from_slice(line.as_bytes());
    }
}

/// An event, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// NIC_RX_FILTER_CHANGED. Devices without an id are not named.
    RxFilterChanged {
        /// The device id.
        device: Option<String>,
    },
    /// DEVICE_DELETED.
    DeviceDeleted {
        /// The device id; absent for devices without one.
        device: Option<String>,
    },
    /// RESET, STOP, RESUME, SHUTDOWN or MIGRATION: anything may be different.
    LookAgain(&'static str),
    /// An event that says nothing about functions.
    Unrelated(&'static str),
}

/// What an event that is on no list counts as.
pub(crate) const OTHER: &str = "other";

/// Events that mean that anything may be different.
const LOOK_AGAIN: [&str; 5] = ["RESET", "STOP", "RESUME", "SHUTDOWN", "MIGRATION"];

/// Events that are counted under their own names and say nothing about functions.
const UNRELATED: [&str; 14] = [
    "ACPI_DEVICE_OST",
    "BALLOON_CHANGE",
    "BLOCK_IO_ERROR",
    "BLOCK_JOB_COMPLETED",
    "DEVICE_UNPLUG_GUEST_ERROR",
    "FAILOVER_NEGOTIATED",
    "GUEST_PANICKED",
    "JOB_STATUS_CHANGE",
    "MIGRATION_PASS",
    "POWERDOWN",
    "RTC_CHANGE",
    "SUSPEND",
    "VSERPORT_CHANGE",
    "WAKEUP",
];

impl Event {
    /// The event's kind: its name, or [`OTHER`].
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::RxFilterChanged { .. } => "NIC_RX_FILTER_CHANGED",
            Self::DeviceDeleted { .. } => "DEVICE_DELETED",
            Self::LookAgain(kind) | Self::Unrelated(kind) => kind,
        }
    }
}

/// One line of a QMP server.
#[derive(Debug)]
pub(crate) enum Message<'line> {
    /// The first line of a connection, with QEMU's version.
    Greeting {
        /// `11.1.3`.
        version: String,
    },
    /// Something happened.
    Event(Event),
    /// A command's result.
    Return {
        /// The command's id.
        id: u64,
        /// The result, not looked into.
        value: &'line RawValue,
    },
    /// A command failed.
    Error {
        /// The command's id; absent where the server could not read the command.
        id: Option<u64>,
        /// The class: `DeviceNotFound`, `CommandNotFound`, `GenericError`.
        class: String,
        /// For people.
        description: String,
    },
}

/// Why a line is no message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotQmp {
    /// It nests deeper than any message does.
    #[error("a message nests deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// It is not JSON, or a known field has another type.
    #[error("a line is no QMP message: {0}")]
    Malformed(#[from] serde_json::Error),
    /// It is a JSON object, and none of greeting, event, return and error.
    #[error("a message is neither greeting, event, return nor error")]
    Unknown,
}

/// How deep a message may nest. A PCI bridge behind a bridge costs query-pci three levels, and PCI
/// has 256 buses; real guests have a few.
pub(crate) const MAX_DEPTH: usize = 100;

#[derive(Deserialize)]
struct Envelope<'line> {
    #[serde(borrow, rename = "QMP")]
    greeting: Option<&'line RawValue>,
    event: Option<String>,
    #[serde(borrow)]
    data: Option<&'line RawValue>,
    #[serde(borrow, rename = "return")]
    value: Option<&'line RawValue>,
    error: Option<WireError>,
    id: Option<u64>,
}

#[derive(Deserialize)]
struct WireError {
    class: String,
    desc: String,
}

#[derive(Deserialize)]
struct WireGreeting {
    version: WireVersions,
}

#[derive(Deserialize)]
struct WireVersions {
    qemu: WireVersion,
}

#[derive(Deserialize)]
struct WireVersion {
    major: u32,
    minor: u32,
    micro: u32,
}

#[derive(Deserialize)]
struct WireRxFilterChanged {
    name: Option<String>,
}

#[derive(Deserialize)]
struct WireDeviceDeleted {
    device: Option<String>,
}

/// Whether `json` opens more than `limit` arrays and objects inside each other.
fn is_deeper_than(limit: usize, json: &[u8]) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in json {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

fn event(name: &str, data: Option<&RawValue>) -> Result<Event, serde_json::Error> {
    let data = data.map_or("{}", RawValue::get);
    let listed = |list: &'static [&'static str]| list.iter().find(|known| **known == name);
    Ok(if name == "NIC_RX_FILTER_CHANGED" {
        let WireRxFilterChanged { name } = serde_json::from_str(data)?;
        Event::RxFilterChanged { device: name }
    } else if name == "DEVICE_DELETED" {
        let WireDeviceDeleted { device } = serde_json::from_str(data)?;
        Event::DeviceDeleted { device }
    } else if let Some(kind) = listed(&LOOK_AGAIN) {
        Event::LookAgain(kind)
    } else {
        Event::Unrelated(listed(&UNRELATED).unwrap_or(&OTHER))
    })
}

/// Splits a successful answer into what comes before its id and the id, where the line is written
/// as QEMU writes it. Two answers that agree in the former say the same.
pub(crate) fn answer_apart_from_id(line: &[u8]) -> Option<(&[u8], u64)> {
    const ID: &[u8] = b", \"id\": ";
    let body = line.strip_suffix(b"}")?;
    let digits = body.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let (rest, id) = body.split_at(body.len() - digits);
    let answer = rest.strip_suffix(ID).filter(|rest| rest.starts_with(b"{\"return\": "))?;
    Some((answer, std::str::from_utf8(id).ok()?.parse().ok()?))
}

/// Reads one line.
pub(crate) fn decode(line: &[u8]) -> Result<Message<'_>, NotQmp> {
    if is_deeper_than(MAX_DEPTH, line) {
        return Err(NotQmp::TooDeep);
    }
    let envelope: Envelope<'_> = serde_json::from_slice(line)?;
    if let Some(name) = envelope.event {
        return Ok(Message::Event(event(&name, envelope.data)?));
    }
    if let Some(error) = envelope.error {
        let WireError { class, desc: description } = error;
        return Ok(Message::Error { id: envelope.id, class, description });
    }
    if let (Some(value), Some(id)) = (envelope.value, envelope.id) {
        return Ok(Message::Return { id, value });
    }
    if let Some(greeting) = envelope.greeting {
        let WireGreeting { version: WireVersions { qemu } } = serde_json::from_str(greeting.get())?;
        let version = format!("{}.{}.{}", qemu.major, qemu.minor, qemu.micro);
        return Ok(Message::Greeting { version });
    }
    Err(NotQmp::Unknown)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(command: &Command) -> serde_json::Value {
        let mut out = Vec::new();
        command.encode(7, &mut out);
        assert!(out.ends_with(b"\r\n"), "one line");
        assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1, "one line");
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn commands_are_encoded_as_the_protocol_says() {
        let vf0 = DeviceId::new("vf0").unwrap();
        assert_eq!(
            encoded(&Command::QueryRxFilter(vf0.clone())),
            serde_json::json!({"execute": "query-rx-filter", "arguments": {"name": "vf0"}, "id": 7})
        );
        assert_eq!(
            encoded(&Command::QomGet(vf0, Property::SriovPf)),
            serde_json::json!({"execute": "qom-get", "id": 7, "arguments":
                {"path": "/machine/peripheral/vf0", "property": "sriov-pf"}})
        );
        assert_eq!(
            encoded(&Command::NegotiateCapabilities),
            serde_json::json!({"execute": "qmp_capabilities", "id": 7})
        );
    }

    #[test]
    fn no_command_is_experimental_or_the_human_monitor() {
        let every = Command::every(&[DeviceId::new("vf0").unwrap()]);
        // Whoever adds a command adds it here and to the list.
        let place = |command: &Command| match command {
            Command::NegotiateCapabilities => 0,
            Command::QueryStatus => 1,
            Command::QueryPci => 2,
            Command::QueryRxFilters => 3,
            Command::QueryRxFilter(_) => 4,
            Command::QomGet(_, Property::SriovPf) => 5,
            Command::QomGet(_, Property::Netdev) => 6,
        };
        assert!(every.iter().map(place).eq(0..7), "the list is whole");
        for command in every {
            let name = command.name();
            assert!(
                name == "qmp_capabilities" || name == "qom-get" || name.starts_with("query-"),
                "{name} may do more than read"
            );
        }
    }

    #[test]
    fn device_ids_that_would_leave_their_folder_or_their_string_are_refused() {
        for bad in ["", "0vf", "a/b", "..", "a\"b", "a b", "a\n", "é", &"x".repeat(129)] {
            assert!(DeviceId::new(bad).is_none(), "{bad}");
        }
        for good in ["vf0", "net-0.1_a", "P"] {
            assert!(DeviceId::new(good).is_some(), "{good}");
        }
    }

    #[test]
    fn the_greeting_tells_the_version() {
        let line = br#"{"QMP": {"version": {"qemu": {"micro": 3, "minor": 1, "major": 11}, "package": "Debian"}, "capabilities": ["oob"]}}"#;
        assert!(matches!(decode(line), Ok(Message::Greeting { version }) if version == "11.1.3"));
    }

    #[test]
    fn events_are_told_apart_and_unknown_ones_count_as_other() {
        let of = |line: &str| match decode(line.as_bytes()) {
            Ok(Message::Event(event)) => event,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(
            of(
                r#"{"timestamp":{"seconds":1,"microseconds":2},"event":"NIC_RX_FILTER_CHANGED","data":{"name":"vf0","path":"/machine/peripheral/vf0/virtio-backend"}}"#
            ),
            Event::RxFilterChanged { device: Some("vf0".into()) }
        );
        assert_eq!(
            of(r#"{"event":"NIC_RX_FILTER_CHANGED","data":{"path":"/x"}}"#),
            Event::RxFilterChanged { device: None }
        );
        assert_eq!(
            of(r#"{"event":"DEVICE_DELETED","data":{"device":"vf0","path":"/x"}}"#),
            Event::DeviceDeleted { device: Some("vf0".into()) }
        );
        assert_eq!(of(r#"{"event":"RESET","data":{"guest":true}}"#), Event::LookAgain("RESET"));
        assert_eq!(of(r#"{"event":"RTC_CHANGE","data":{"offset":1}}"#).kind(), "RTC_CHANGE");
        assert_eq!(of(r#"{"event":"NO_SUCH_THING","data":[1,{}]}"#).kind(), OTHER);
    }

    #[test]
    fn replies_and_errors_carry_their_ids() {
        assert!(matches!(
            decode(br#"{"return": {"a": [1, 2]}, "id": 12}"#),
            Ok(Message::Return { id: 12, value }) if value.get() == r#"{"a": [1, 2]}"#
        ));
        assert!(matches!(
            decode(br#"{"id":3,"error":{"class":"DeviceNotFound","desc":"no"}}"#),
            Ok(Message::Error { id: Some(3), class, .. }) if class == "DeviceNotFound"
        ));
        assert!(decode(br#"{"return": {}}"#).is_err(), "a reply without an id answers nothing");
        assert!(decode(br#"{"return": {}, "id": "x"}"#).is_err(), "an id that was never sent");
    }

    #[test]
    fn an_answer_is_told_from_its_id_only_where_nothing_else_could_be_meant() {
        let (answer, id) = answer_apart_from_id(br#"{"return": [1, 2], "id": 17}"#).unwrap();
        assert_eq!((answer, id), (&br#"{"return": [1, 2]"#[..], 17));
        for other in [
            &br#"{"id": 17, "return": [1, 2]}"#[..],
            br#"{"event": "X", "id": 17}"#,
            br#"{"return": [1, 2], "id": }"#,
            br#"{"return": [1, 2], "id": 99999999999999999999}"#,
            br#"{"return": [1, 2]}"#,
            b"}",
            b"",
        ] {
            assert_eq!(answer_apart_from_id(other), None);
        }
    }

    #[test]
    fn depth_is_bounded_even_where_nobody_looks() {
        let nested = |levels: usize| {
            format!("{{\"event\":\"X\",\"data\":{}{}}}", "[".repeat(levels), "]".repeat(levels))
        };
        assert!(decode(nested(MAX_DEPTH - 1).as_bytes()).is_ok());
        assert!(matches!(decode(nested(MAX_DEPTH).as_bytes()), Err(NotQmp::TooDeep)));
        assert!(matches!(decode(nested(300_000).as_bytes()), Err(NotQmp::TooDeep)));
        let quoted = format!("{{\"event\":\"{}\\\"{}\"}}", "[".repeat(500), "{".repeat(500));
        assert!(decode(quoted.as_bytes()).is_ok(), "brackets in strings nest nothing");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(line in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&line);
        }

        #[test]
        fn no_mangled_message_makes_the_decoder_panic(
            at in 0usize..200, byte in any::<u8>(), cut in 0usize..200,
        ) {
            let mut line = br#"{"timestamp":{"seconds":1,"microseconds":2},"event":"NIC_RX_FILTER_CHANGED","data":{"name":"vf0","path":"/p"}}"#.to_vec();
            let len = line.len();
            line[at % len] = byte;
            line.truncate(cut.max(1));
            let _ = decode(&line);
        }

        #[test]
        fn every_device_id_is_encoded_without_breaking_out(id in "[a-zA-Z][a-zA-Z0-9._-]{0,60}") {
            let device = DeviceId::new(&id).unwrap();
            let json = encoded(&Command::QueryRxFilter(device));
            prop_assert_eq!(json["arguments"]["name"].as_str(), Some(id.as_str()));
        }
    }
}
