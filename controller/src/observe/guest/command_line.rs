//! What a QEMU's command line claims about its network backends.
//!
//! In: the bytes of `/proc/PID/cmdline`. Out: [`Claims`]. They are claims because a process can
//! rewrite its own command line: whoever uses them asks the kernel. No I/O.

use std::{collections::BTreeMap, path::PathBuf};

/// What a command line says of backends and devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    /// Network backends by id.
    pub(crate) netdevs: BTreeMap<String, NetdevClaim>,
    /// The backend's id of each device that has an id and a backend.
    pub(crate) devices: BTreeMap<String, String>,
    /// The set of each `-add-fd`, in their order.
    pub(crate) descriptor_sets: Vec<String>,
}

/// What a network backend is said to stand on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NetdevClaim {
    /// A tap.
    Tap {
        /// `ifname=`.
        name: Option<String>,
        /// `fd=` and `fds=`, where they are numbers.
        fds: Vec<u32>,
    },
    /// A vhost-vdpa character device.
    VhostVdpa {
        /// How it is named.
        device: VhostVdpaClaim,
        /// `x-svq=on`: QEMU stands between the guest's queues and the device's.
        shadowed: bool,
    },
    /// Another type of backend.
    Other {
        /// Its type.
        kind: String,
    },
}

/// How a vhost-vdpa backend names its character device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VhostVdpaClaim {
    /// `vhostdev=/dev/vhost-vdpa-0`.
    Path(PathBuf),
    /// `vhostfd=7`.
    Fd(u32),
    /// `vhostdev=/dev/fdset/2`: a set of inherited descriptors.
    Set(String),
    /// A form that does not say which.
    Unnamed,
}

/// The properties of one option, whichever way they are written.
type Properties = BTreeMap<String, String>;

/// Reads `implied,key=value,…`, where a comma in a value is written twice (QEMU's
/// `util/keyval.c` and `util/qemu-option.c`). The first item may leave out its key.
fn key_values(text: &str, implied: &str) -> Properties {
    let mut items = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, items.last_mut()) {
            (',', Some(item)) if chars.peek() == Some(&',') => {
                chars.next();
                item.push(',');
            }
            (',', _) => items.push(String::new()),
            (c, Some(item)) => item.push(c),
            (_, None) => {}
        }
    }
    let mut properties = Properties::new();
    for (index, item) in items.into_iter().enumerate() {
        match item.split_once('=') {
            Some((key, value)) => properties.insert(key.to_owned(), value.to_owned()),
            None if index == 0 => properties.insert(implied.to_owned(), item),
            None => properties.insert(item, "on".to_owned()),
        };
    }
    properties
}

/// Reads the JSON form. Nested values are left out: nothing that is asked for here is nested.
fn json(text: &str) -> Option<Properties> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    let scalar = |value| match value {
        serde_json::Value::String(text) => Some(text),
        serde_json::Value::Number(number) => Some(number.to_string()),
        serde_json::Value::Bool(flag) => Some(if flag { "on" } else { "off" }.to_owned()),
        _ => None,
    };
    Some(object.into_iter().filter_map(|(key, value)| Some((key, scalar(value)?))).collect())
}

fn properties(text: &str, implied: &str) -> Properties {
    let form = if text.starts_with('{') { json(text) } else { None };
    form.unwrap_or_else(|| key_values(text, implied))
}

fn netdev_claim(properties: &Properties) -> NetdevClaim {
    let of = |key: &str| properties.get(key).map(String::as_str);
    match of("type") {
        Some("tap") => NetdevClaim::Tap {
            name: of("ifname").map(str::to_owned),
            fds: [of("fd"), of("fds")]
                .into_iter()
                .flatten()
                .flat_map(|fds| fds.split(':'))
                .filter_map(|fd| fd.parse().ok())
                .collect(),
        },
        Some("vhost-vdpa") => NetdevClaim::VhostVdpa {
            device: match (of("vhostdev"), of("vhostfd")) {
                (Some(path), _) => match path.strip_prefix("/dev/fdset/") {
                    Some(set) => VhostVdpaClaim::Set(set.to_owned()),
                    None => VhostVdpaClaim::Path(path.into()),
                },
                (None, Some(fd)) => fd.parse().map_or(VhostVdpaClaim::Unnamed, VhostVdpaClaim::Fd),
                (None, None) => VhostVdpaClaim::Unnamed,
            },
            shadowed: matches!(of("x-svq"), Some("on" | "true" | "yes" | "y")),
        },
        kind => NetdevClaim::Other { kind: kind.unwrap_or("of no type").to_owned() },
    }
}

/// Reads a command line: arguments, each ended by a zero byte.
pub(crate) fn claims(bytes: &[u8]) -> Claims {
    let mut claims = Claims::default();
    let mut arguments = bytes.split(|&b| b == 0).map(String::from_utf8_lossy);
    while let Some(argument) = arguments.next() {
        let option = argument.strip_prefix('-').map(|rest| rest.strip_prefix('-').unwrap_or(rest));
        match option {
            Some("netdev") => {
                let properties = properties(&arguments.next().unwrap_or_default(), "type");
                if let Some(id) = properties.get("id") {
                    claims.netdevs.insert(id.clone(), netdev_claim(&properties));
                }
            }
            Some("device") => {
                let properties = properties(&arguments.next().unwrap_or_default(), "driver");
                if let (Some(id), Some(netdev)) = (properties.get("id"), properties.get("netdev")) {
                    claims.devices.insert(id.clone(), netdev.clone());
                }
            }
            Some("add-fd") => {
                let properties = properties(&arguments.next().unwrap_or_default(), "fd");
                claims.descriptor_sets.extend(properties.get("set").cloned());
            }
            _ => {}
        }
    }
    claims
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(arguments: &[&str]) -> Claims {
        claims(arguments.join("\0").as_bytes())
    }

    fn netdev(option: &str) -> NetdevClaim {
        of(&["qemu", "-netdev", option]).netdevs.remove("n1").expect("the backend n1")
    }

    fn tap(name: Option<&str>, fds: &[u32]) -> NetdevClaim {
        NetdevClaim::Tap { name: name.map(str::to_owned), fds: fds.to_vec() }
    }

    #[test]
    fn taps_are_read_in_both_forms() {
        let expected = tap(Some("tap1"), &[]);
        assert_eq!(netdev("tap,id=n1,ifname=tap1,script=no,downscript=no"), expected);
        assert_eq!(netdev("type=tap,id=n1,ifname=tap1"), expected);
        assert_eq!(netdev(r#"{"type":"tap","id":"n1","ifname":"tap1","vhost":true}"#), expected);
    }

    #[test]
    fn inherited_descriptors_are_read_one_or_many() {
        assert_eq!(netdev("tap,id=n1,fd=31,vhost=on"), tap(None, &[31]));
        assert_eq!(netdev("tap,id=n1,fds=31:32:33"), tap(None, &[31, 32, 33]));
        assert_eq!(netdev(r#"{"type":"tap","id":"n1","fd":"31"}"#), tap(None, &[31]));
        assert_eq!(netdev("tap,id=n1,fd=named-by-monitor"), tap(None, &[]));
    }

    #[test]
    fn a_doubled_comma_is_one_comma_of_the_value() {
        assert_eq!(netdev("tap,ifname=a,,b,,,id=n1"), tap(Some("a,b,"), &[]));
        assert_eq!(netdev("tap,ifname=x,,,,y,id=n1"), tap(Some("x,,y"), &[]));
    }

    #[test]
    fn vhost_vdpa_is_named_by_path_by_descriptor_or_not_at_all() {
        let of = |device| NetdevClaim::VhostVdpa { device, shadowed: false };
        assert_eq!(
            netdev("vhost-vdpa,id=n1,vhostdev=/dev/vhost-vdpa-3"),
            of(VhostVdpaClaim::Path("/dev/vhost-vdpa-3".into()))
        );
        assert_eq!(netdev("vhost-vdpa,id=n1,vhostfd=7"), of(VhostVdpaClaim::Fd(7)));
        assert_eq!(netdev("vhost-vdpa,id=n1,vhostfd=named"), of(VhostVdpaClaim::Unnamed));
        assert_eq!(
            netdev(r#"{"type":"vhost-vdpa","vhostdev":"/dev/fdset/2","id":"n1"}"#),
            of(VhostVdpaClaim::Set("2".into()))
        );
    }

    #[test]
    fn a_shadowed_control_queue_is_read_in_both_forms() {
        let shadowed = |option: &str| match netdev(option) {
            NetdevClaim::VhostVdpa { shadowed, .. } => shadowed,
            other => panic!("{other:?}"),
        };
        assert!(shadowed("vhost-vdpa,id=n1,vhostdev=/dev/vhost-vdpa-3,x-svq=on"));
        assert!(shadowed(r#"{"type":"vhost-vdpa","vhostfd":"7","id":"n1","x-svq":true}"#));
        assert!(!shadowed("vhost-vdpa,id=n1,vhostfd=7,x-svq=off"));
    }

    #[test]
    fn sets_of_descriptors_are_listed_in_their_order() {
        let claims = of(&["qemu", "-add-fd", "fd=3,set=7,opaque=a", "--add-fd", "fd=4,set=1"]);
        assert_eq!(claims.descriptor_sets, ["7", "1"]);
    }

    #[test]
    fn other_backends_are_named() {
        assert_eq!(netdev("user,id=n1"), NetdevClaim::Other { kind: "user".into() });
        assert_eq!(
            netdev("vhost-user,chardev=c,id=n1"),
            NetdevClaim::Other { kind: "vhost-user".into() }
        );
    }

    #[test]
    fn devices_name_their_backends_in_both_forms() {
        let claims = of(&[
            "qemu",
            "-device",
            "virtio-net-pci,id=vf0,bus=b,addr=0x0.0x1,netdev=n1,sriov-pf=pf0",
            "--device",
            r#"{"driver":"virtio-net-pci","id":"pf0","netdev":"n0","mq":true}"#,
            "-device",
            "virtio-net-pci,netdev=n9",
        ]);
        let expected = [("pf0", "n0"), ("vf0", "n1")];
        assert_eq!(
            claims.devices.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect::<Vec<_>>(),
            expected
        );
    }

    proptest! {
        #[test]
        fn no_command_line_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut line = b"qemu\0-netdev\0".to_vec();
            line.extend(&bytes);
            let _ = claims(&line);
        }

        #[test]
        fn every_value_survives_the_doubling_of_its_commas(name in "[a-z,=]{1,12}") {
            let option = format!("tap,ifname={},id=n1", name.replace(',', ",,"));
            prop_assert_eq!(netdev(&option), tap(Some(&name), &[]));
        }
    }
}
