//! What a specification must fulfil beyond its types.
//!
//! In: a spec as it was read. Out: nothing, or the first field that is wrong and what would be
//! right. Pure: whether a spec agrees with *other* resources is the daemon's business.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::InvalidField,
    resources::{
        Attachment, Backing, EswitchMode, EswitchSpec, GuestMacs, GuestSpec, NetworkSpec,
        PortFunction, PortSpec, Qos,
    },
    types::MacAddr,
};

/// The most reserved addresses of a network.
pub const RESERVED_MACS_MAX: usize = 64;
/// The most attachments of a port.
pub const ATTACHMENTS_MAX: usize = 64;
/// The most fixed addresses of a port.
pub const MACS_MAX: usize = 64;
/// The most IP addresses and prefixes of a port.
pub const IPS_MAX: usize = 64;
/// The most address pairs of a port.
pub const ADDRESS_PAIRS_MAX: usize = 64;
/// The most further ethertypes of a port.
pub const ETHERTYPES_MAX: usize = 16;
/// The most addresses that a guest may choose for a port.
pub const GUEST_MACS_MAX: u16 = 64;
/// The most prefixes to choose from.
pub const MAC_PREFIXES_MAX: usize = 64;
/// The highest storm limit of a port, in frames a second.
pub const FLOOD_LIMIT_MAX: u32 = 1_000_000;
/// The smallest MTU of a port: every host takes that much (RFC 791).
pub const MTU_MIN: u16 = 68;
/// The longest device id, in bytes.
pub const DEVICE_LEN_MAX: usize = 128;
/// The longest netdev name, in bytes: `IFNAMSIZ` without its NUL (`include/uapi/linux/if.h`).
pub const NETDEV_LEN_MAX: usize = 15;
/// The longest path of a Unix socket, in bytes: `sun_path` without its NUL
/// (`include/uapi/linux/un.h`).
pub const SOCKET_PATH_LEN_MAX: usize = 107;
/// The most explicit backings of a guest.
pub const BACKINGS_MAX: usize = 256;

fn invalid(
    field: impl Into<String>,
    detail: impl Into<String>,
    remedy: impl Into<String>,
) -> Result<(), InvalidField> {
    Err(InvalidField { field: field.into(), detail: detail.into(), remedy: remedy.into() })
}

/// Labels of a resource at most.
pub const LABELS_MAX: usize = 32;

/// Bytes of a label's name, and of its value, at most.
pub const LABEL_LEN_MAX: usize = 128;

fn labels(labels: &BTreeMap<String, String>) -> Result<(), InvalidField> {
    at_most("spec.labels", labels.len(), LABELS_MAX)?;
    match labels.iter().find(|(name, value)| !is_label_name(name) || !is_label_value(value)) {
        None => Ok(()),
        Some((name, _)) => invalid(
            "spec.labels",
            format!("`{}` or its value is none that a label can have", shortened(name)),
            format!(
                "use 1 to {LABEL_LEN_MAX} letters, digits or . _ : - / for names, and at most \
                 {LABEL_LEN_MAX} bytes without control characters for values"
            ),
        ),
    }
}

/// Whether a label can be called so.
pub(crate) fn is_label_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-/".contains(&byte);
    (1..=LABEL_LEN_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

fn is_label_value(value: &str) -> bool {
    value.len() <= LABEL_LEN_MAX && !value.contains(char::is_control)
}

fn at_most(field: &str, count: usize, max: usize) -> Result<(), InvalidField> {
    match count <= max {
        true => Ok(()),
        false => invalid(field, format!("has {count} entries"), format!("use at most {max}")),
    }
}

impl NetworkSpec {
    /// Checks everything about this spec that needs no knowledge of other resources.
    pub fn validate(&self) -> Result<(), InvalidField> {
        labels(&self.labels)?;
        at_most("spec.reserved_macs", self.reserved_macs.len(), RESERVED_MACS_MAX)?;
        stations("spec.reserved_macs", &self.reserved_macs)
    }
}

impl PortSpec {
    /// Checks everything about this spec that needs no knowledge of other resources.
    pub fn validate(&self) -> Result<(), InvalidField> {
        labels(&self.labels)?;
        match &self.function {
            PortFunction::GuestVf { device, .. } => {
                device_id("spec.function.guest_vf.device", device)?;
            }
            PortFunction::Netdev { name, .. } => netdev_name("spec.function.netdev.name", name)?,
            PortFunction::Vf { .. } => {}
        }
        at_most("spec.attachments", self.attachments.len(), ATTACHMENTS_MAX)?;
        attachments(&self.attachments)?;
        at_most("spec.macs", self.macs.len(), MACS_MAX)?;
        stations("spec.macs", &self.macs)?;
        distinct("spec.macs", &self.macs)?;
        self.guest_macs.as_ref().map_or(Ok(()), guest_macs)?;
        at_most("spec.ips", self.ips.len(), IPS_MAX)?;
        let pairs = &self.allowed_address_pairs;
        at_most("spec.allowed_address_pairs", pairs.len(), ADDRESS_PAIRS_MAX)?;
        if let Some(index) = pairs.iter().position(|p| p.mac.is_some_and(|mac| !mac.is_station())) {
            return invalid(
                format!("spec.allowed_address_pairs[{index}].mac"),
                "is no station's address",
                "use an address whose first byte is even and that is not all zero",
            );
        }
        ethertypes(&self.ethertypes)?;
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu < MTU_MIN) {
            return invalid(
                "spec.mtu",
                format!("is {mtu}"),
                format!("use {MTU_MIN} to 65535, or leave it out to have nothing checked"),
            );
        }
        self.qos.as_ref().map_or(Ok(()), qos)
    }
}

impl EswitchSpec {
    /// Checks everything about this spec that needs no knowledge of the adapter.
    pub fn validate(&self) -> Result<(), InvalidField> {
        match (self.mode, self.num_vfs) {
            (Some(EswitchMode::Software), _) => invalid(
                "spec.mode",
                "`software` is no mode that an eswitch can be set to",
                "use legacy or switchdev",
            ),
            (None, None) => invalid("spec", "asks for nothing", "give mode, num_vfs or both"),
            _ => Ok(()),
        }
    }
}

impl GuestSpec {
    /// Checks everything about this spec that needs no knowledge of other resources.
    pub fn validate(&self) -> Result<(), InvalidField> {
        labels(&self.labels)?;
        if let Some(path) = &self.qmp {
            socket_path("spec.qmp", path)?;
        }
        at_most("spec.backings", self.backings.len(), BACKINGS_MAX)?;
        self.backings.iter().try_for_each(|(device, backing)| {
            device_id("spec.backings", device)?;
            match backing {
                Backing::Netdev { name } => {
                    netdev_name(&format!("spec.backings.{device}.netdev.name"), name)
                }
                Backing::Vf { .. } => Ok(()),
            }
        })?;
        distinct_backings(&self.backings)
    }
}

fn attachments(attachments: &[Attachment]) -> Result<(), InvalidField> {
    let mut networks = BTreeSet::new();
    let mut tags = BTreeSet::new();
    for (index, attachment) in attachments.iter().enumerate() {
        if attachment.qinq && (attachment.tag.is_some() || attachments.len() > 1) {
            return invalid(
                format!("spec.attachments[{index}].qinq"),
                "keeps the guest's tags, which then name no network",
                "make it the port's only attachment, without a tag, or leave qinq out",
            );
        }
        if !networks.insert(&attachment.network) {
            return invalid(
                format!("spec.attachments[{index}].network"),
                format!("attaches network `{}` a second time", attachment.network),
                "attach each network at most once",
            );
        }
        if !tags.insert(attachment.tag) {
            let (detail, remedy) = match attachment.tag {
                Some(tag) => (
                    format!("uses tag {tag} a second time"),
                    "give each tagged attachment a tag of its own",
                ),
                None => (
                    "is a second untagged attachment".to_owned(),
                    "leave at most one attachment untagged and give the others a tag",
                ),
            };
            return invalid(format!("spec.attachments[{index}].tag"), detail, remedy);
        }
    }
    Ok(())
}

fn guest_macs(choice: &GuestMacs) -> Result<(), InvalidField> {
    if !(1..=GUEST_MACS_MAX).contains(&choice.max) {
        return invalid(
            "spec.guest_macs.max",
            format!("is {}", choice.max),
            format!("use 1 to {GUEST_MACS_MAX}, or leave guest_macs out to allow none"),
        );
    }
    at_most("spec.guest_macs.allow", choice.allow.len(), MAC_PREFIXES_MAX)?;
    match choice.allow.iter().position(|prefix| !prefix.has_stations()) {
        None => Ok(()),
        Some(index) => invalid(
            format!("spec.guest_macs.allow[{index}]"),
            "no station's address begins like this",
            "use a prefix whose first byte is even, as in 02:aa",
        ),
    }
}

/// Ethertypes begin at 0x600 (IEEE 802.3); those of tags, IP, ARP and RARP are not for the list.
fn ethertypes(ethertypes: &[u16]) -> Result<(), InvalidField> {
    const TAKEN: [u16; 7] = [0x0800, 0x0806, 0x8035, 0x86dd, 0x8100, 0x88a8, 0x9100];
    at_most("spec.ethertypes", ethertypes.len(), ETHERTYPES_MAX)?;
    match ethertypes.iter().position(|number| *number < 0x600 || TAKEN.contains(number)) {
        None => Ok(()),
        Some(index) => invalid(
            format!("spec.ethertypes[{index}]"),
            format!("{:#06x} is none that can be listed", ethertypes[index]),
            "use 1536 (0x0600) to 65535, without those of VLAN tags, IPv4, IPv6, ARP and RARP",
        ),
    }
}

fn qos(qos: &Qos) -> Result<(), InvalidField> {
    if let Some(limit) = qos.flood_limit.filter(|limit| !(1..=FLOOD_LIMIT_MAX).contains(limit)) {
        return invalid(
            "spec.qos.flood_limit",
            format!("is {limit}"),
            format!("use 1 to {FLOOD_LIMIT_MAX}, or leave it out for no limit"),
        );
    }
    match (qos.tx_min, qos.tx_max) {
        (Some(min), Some(max)) if min > max => invalid(
            "spec.qos.tx_min",
            format!("is {min}, more than tx_max"),
            format!("use at most {}", max.get()),
        ),
        _ => Ok(()),
    }
}

fn stations(field: &str, macs: &[MacAddr]) -> Result<(), InvalidField> {
    match macs.iter().position(|mac| !mac.is_station()) {
        None => Ok(()),
        Some(index) => invalid(
            format!("{field}[{index}]"),
            format!("{} is no station's address", macs[index]),
            "use an address whose first byte is even and that is not all zero",
        ),
    }
}

fn distinct(field: &str, macs: &[MacAddr]) -> Result<(), InvalidField> {
    let mut seen = BTreeSet::new();
    match macs.iter().position(|mac| !seen.insert(mac)) {
        None => Ok(()),
        Some(index) => invalid(
            format!("{field}[{index}]"),
            format!("{} is there a second time", macs[index]),
            "name each address once",
        ),
    }
}

fn distinct_backings(backings: &BTreeMap<String, Backing>) -> Result<(), InvalidField> {
    let mut seen = BTreeMap::new();
    for (device, backing) in backings {
        if let Some(other) = seen.insert(backing, device) {
            return invalid(
                format!("spec.backings.{device}"),
                format!("stands on the same backing as device `{other}`"),
                "give each device a backing of its own",
            );
        }
    }
    Ok(())
}

/// QEMU's rule for ids (`util/id.c`, `id_wellformed`), and a bound.
fn device_id(field: &str, device: &str) -> Result<(), InvalidField> {
    let well_formed = device.starts_with(|c: char| c.is_ascii_alphabetic())
        && device.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    match well_formed && device.len() <= DEVICE_LEN_MAX {
        true => Ok(()),
        false => invalid(
            field,
            format!("`{}` is no device id of QEMU", shortened(device)),
            format!(
                "use the id of the -device option: a letter, then letters, digits or - . _, \
                 at most {DEVICE_LEN_MAX} in all"
            ),
        ),
    }
}

/// The kernel's rule for names (`net/core/dev.c`, `dev_valid_name`), without control characters.
fn netdev_name(field: &str, name: &str) -> Result<(), InvalidField> {
    let valid = (1..=NETDEV_LEN_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    match valid {
        true => Ok(()),
        false => invalid(
            field,
            format!("`{}` is no netdev's name", shortened(name)),
            format!("use 1 to {NETDEV_LEN_MAX} bytes without spaces, `/` and `:`"),
        ),
    }
}

fn socket_path(field: &str, path: &str) -> Result<(), InvalidField> {
    let remedy =
        format!("use an absolute path of at most {SOCKET_PATH_LEN_MAX} bytes, as in /run/vm1.sock");
    if !path.starts_with('/') {
        invalid(field, format!("`{}` is not an absolute path", shortened(path)), remedy)
    } else if path.len() > SOCKET_PATH_LEN_MAX {
        let detail = format!("is {} bytes long: no Unix socket's path can be", path.len());
        invalid(field, detail, remedy)
    } else if path.contains('\0') {
        invalid(field, "contains a NUL byte", remedy)
    } else {
        Ok(())
    }
}

/// A text of the client's, short enough to be said back.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(64) {
        None => text.escape_debug().to_string(),
        Some((end, _)) => format!("{}…", text[..end].escape_debug()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn network(spec: Value) -> Result<(), InvalidField> {
        serde_json::from_value::<NetworkSpec>(spec).unwrap().validate()
    }

    /// A good port with `change` over it.
    fn port(change: Value) -> Result<(), InvalidField> {
        let mut spec = json!({
            "function": {"guest_vf": {"guest": "vm1", "device": "vf0"}},
            "attachments": [{"network": "blue"}, {"network": "red", "tag": 20}],
            "macs": ["02:00:00:00:00:01"],
            "guest_macs": {"max": 4, "allow": ["02:aa"]},
        });
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        serde_json::from_value::<PortSpec>(spec).unwrap().validate()
    }

    fn guest(spec: Value) -> Result<(), InvalidField> {
        serde_json::from_value::<GuestSpec>(spec).unwrap().validate()
    }

    #[track_caller]
    fn refused(outcome: Result<(), InvalidField>, field: &str, remedy: &str) {
        let error = outcome.unwrap_err();
        assert_eq!(error.field, field);
        assert!(error.remedy.contains(remedy), "{error}");
    }

    fn macs(count: usize) -> Vec<String> {
        (1..=count).map(|n| MacAddr([2, 0, 0, 0, 1, n as u8]).to_string()).collect()
    }

    fn attached(count: usize) -> Vec<Value> {
        (1..=count).map(|n| json!({"network": format!("n{n}"), "tag": n})).collect()
    }

    #[test]
    fn good_specs_pass() {
        assert_eq!(network(json!({"kind": "flat", "reserved_macs": macs(64)})), Ok(()));
        assert_eq!(port(json!({})), Ok(()));
        assert_eq!(port(json!({"attachments": [], "macs": macs(64)})), Ok(()));
        assert_eq!(port(json!({"attachments": attached(64)})), Ok(()));
        let backings = json!({"vf0": {"vf": {"adapter": "a", "index": 0}},
                              "vf1": {"netdev": {"name": "tap0"}}});
        assert_eq!(guest(json!({"qmp": "/run/vm1.sock", "backings": backings})), Ok(()));
        assert_eq!(guest(json!({})), Ok(()));
    }

    #[test]
    fn reserved_addresses_are_few_and_stations() {
        let spec = |macs| json!({"kind": "flat", "reserved_macs": macs});
        refused(network(spec(macs(65))), "spec.reserved_macs", "at most 64");
        let group = vec!["02:00:00:00:00:01".to_owned(), "ff:ff:ff:ff:ff:ff".to_owned()];
        refused(network(spec(group)), "spec.reserved_macs[1]", "even");
    }

    #[test]
    fn labels_are_few_and_short_and_plain() {
        let of = |labels: Value| network(json!({"kind": "flat", "labels": labels}));
        assert_eq!(of(json!({"example.com/role": "größe 3", "a": ""})), Ok(()));
        let many: BTreeMap<String, &str> = (0..33).map(|n| (format!("l{n}"), "")).collect();
        refused(of(json!(many)), "spec.labels", "at most 32");
        for (name, value) in [("", "a"), ("a b", "a"), ("a", "\n"), ("a", &"x".repeat(129))] {
            refused(of(json!({name: value})), "spec.labels", "1 to 128");
            refused(port(json!({"labels": {name: value}})), "spec.labels", "1 to 128");
            refused(guest(json!({"labels": {name: value}})), "spec.labels", "1 to 128");
        }
    }

    #[test]
    fn a_port_attaches_each_network_once_and_each_tag_once() {
        let attachments = |list: Value| port(json!({"attachments": list}));
        refused(
            attachments(json!([{"network": "blue"}, {"network": "blue", "tag": 3}])),
            "spec.attachments[1].network",
            "once",
        );
        refused(
            attachments(json!([{"network": "a"}, {"network": "b"}])),
            "spec.attachments[1].tag",
            "untagged",
        );
        refused(
            attachments(
                json!([{"network": "a"}, {"network": "b", "tag": 7}, {"network": "c", "tag": 7}]),
            ),
            "spec.attachments[2].tag",
            "tag of its own",
        );
        refused(attachments(attached(65).into()), "spec.attachments", "at most 64");
    }

    #[test]
    fn a_port_whose_guest_keeps_its_tags_has_one_attachment_and_that_is_untagged() {
        let attachments = |list: Value| port(json!({"attachments": list}));
        assert_eq!(attachments(json!([{"network": "a", "qinq": true}])), Ok(()));
        let tagged = json!([{"network": "a", "tag": 7, "qinq": true}]);
        refused(attachments(tagged), "spec.attachments[0].qinq", "without a tag");
        let second = json!([{"network": "a", "tag": 7}, {"network": "b", "qinq": true}]);
        refused(attachments(second), "spec.attachments[1].qinq", "only attachment");
    }

    #[test]
    fn a_ports_addresses_are_few_distinct_stations() {
        refused(port(json!({"macs": macs(65)})), "spec.macs", "at most 64");
        refused(port(json!({"macs": ["00:00:00:00:00:00"]})), "spec.macs[0]", "not all zero");
        let twice = json!({"macs": ["02:00:00:00:00:0a", "02:00:00:00:00:0A"]});
        refused(port(twice), "spec.macs[1]", "once");
    }

    #[test]
    fn a_guests_choice_is_bounded_and_possible() {
        for max in [0, 65] {
            refused(port(json!({"guest_macs": {"max": max}})), "spec.guest_macs.max", "1 to 64");
        }
        let group = json!({"guest_macs": {"max": 1, "allow": ["02", "01:00:5e"]}});
        refused(port(group), "spec.guest_macs.allow[1]", "even");
        let many = json!({"guest_macs": {"max": 1, "allow": vec!["02"; 65]}});
        refused(port(many), "spec.guest_macs.allow", "at most 64");
    }

    #[test]
    fn what_a_port_may_send_is_bounded_and_possible() {
        let ips = |count: usize| (1..=count).map(|n| format!("192.0.2.{n}")).collect::<Vec<_>>();
        assert_eq!(port(json!({"ips": ips(64), "allow": ["dhcp_server"]})), Ok(()));
        refused(port(json!({"ips": ips(65)})), "spec.ips", "at most 64");
        let pair = json!([{"ip": "192.0.2.9"}, {"mac": "01:00:5e:00:00:01", "ip": "::/0"}]);
        let field = "spec.allowed_address_pairs[1].mac";
        refused(port(json!({"allowed_address_pairs": pair})), field, "even");
        for bad in [0x5ff, 0x0800, 0x8100] {
            refused(port(json!({"ethertypes": [0x88cc, bad]})), "spec.ethertypes[1]", "1536");
        }
    }

    #[test]
    fn a_minimum_is_not_above_the_maximum() {
        let of = |min: u64, max: u64| port(json!({"qos": {"tx_min": min, "tx_max": max}}));
        assert_eq!(of(2_000_000, 2_000_000), Ok(()));
        assert_eq!(port(json!({"qos": {}})), Ok(()));
        refused(of(3_000_000, 2_000_000), "spec.qos.tx_min", "at most 2000000");
        refused(port(json!({"qos": {"flood_limit": 0}})), "spec.qos.flood_limit", "1 to 1000000");
    }

    #[test]
    fn an_mtu_is_one_that_a_link_can_have() {
        assert_eq!(port(json!({"mtu": 68})), Ok(()));
        refused(port(json!({"mtu": 67})), "spec.mtu", "68 to 65535");
    }

    #[test]
    fn an_eswitch_is_asked_for_something_that_it_can_be() {
        let of = |spec: Value| serde_json::from_value::<EswitchSpec>(spec).unwrap().validate();
        assert_eq!(of(json!({"mode": "switchdev"})), Ok(()));
        assert_eq!(of(json!({"num_vfs": 0})), Ok(()));
        refused(of(json!({})), "spec", "mode, num_vfs");
        refused(of(json!({"mode": "software"})), "spec.mode", "legacy or switchdev");
    }

    #[test]
    fn devices_are_named_as_qemu_names_them() {
        for bad in ["", "0vf", "vf 0", "vf/0", &"v".repeat(129)] {
            let function = json!({"function": {"guest_vf": {"guest": "vm1", "device": bad}}});
            refused(port(function), "spec.function.guest_vf.device", "-device");
            let backings = json!({"backings": {bad: {"netdev": {"name": "tap0"}}}});
            refused(guest(backings), "spec.backings", "-device");
        }
    }

    #[test]
    fn netdevs_are_named_as_the_kernel_names_them() {
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "a\u{0}b", "sixteen-bytes-xx"] {
            let function = json!({"function": {"netdev": {"adapter": "soft-a", "name": bad}}});
            refused(port(function), "spec.function.netdev.name", "1 to 15");
            let backings = json!({"backings": {"vf0": {"netdev": {"name": bad}}}});
            refused(guest(backings), "spec.backings.vf0.netdev.name", "1 to 15");
        }
    }

    #[test]
    fn a_qmp_socket_is_an_absolute_path_that_a_socket_can_have() {
        let long = format!("/{}", "x".repeat(107));
        for bad in ["", "vm1.sock", "/run/\u{0}", &long] {
            refused(guest(json!({"qmp": bad})), "spec.qmp", "absolute path of at most 107");
        }
        assert_eq!(guest(json!({"qmp": &long[..107]})), Ok(()));
    }

    #[test]
    fn a_guests_devices_have_few_backings_and_each_its_own() {
        let vfs = |count: usize| -> serde_json::Map<String, Value> {
            let vf = |n| (format!("vf{n}"), json!({"vf": {"adapter": "a", "index": n}}));
            (0..count).map(vf).collect()
        };
        assert_eq!(guest(json!({"backings": vfs(256)})), Ok(()));
        refused(guest(json!({"backings": vfs(257)})), "spec.backings", "at most 256");
        let tap = json!({"netdev": {"name": "tap0"}});
        let shared = json!({"backings": {"vf0": tap, "vf1": tap}});
        refused(guest(shared), "spec.backings.vf1", "of its own");
    }

    #[test]
    fn what_is_said_back_is_short() {
        let error = guest(json!({"qmp": "é".repeat(100_000)})).unwrap_err();
        assert!(error.detail.len() < 300, "{}", error.detail.len());
    }
}
