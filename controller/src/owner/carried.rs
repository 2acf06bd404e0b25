//! What ports had counted when the daemon ended, for the next one.
//!
//! In: sums, and what the kernel's counters said when these were taken. Out: the same after a
//! restart. It stands in a file of the state folder, written at an orderly end and taken away when
//! it is read: after a crash there is none, and ports count from nothing. Another boot's is not
//! believed, because its netdevs are gone.

use std::{collections::BTreeMap, fs, io, path::Path};

use api::types::Id;
use serde::{Deserialize, Serialize};
use tc_flows::{Counters, Ifindex};

use crate::observe::host::Traffic;

/// Where the kernel names its boot (`drivers/char/random.c`).
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Packets and bytes.
pub(super) type Count = [u64; 2];

/// Packets and bytes that a netdev has received, and those that it has sent.
pub(super) type Ways = [u64; 4];

/// A port's counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CarriedPort {
    /// What its netdevs have moved, and the one that it stands on with what that had counted.
    pub(super) moved: Option<(Ways, Option<(u32, Ways)>)>,
    /// The same of what went through the host's CPU.
    pub(super) software: Option<(Ways, Option<(u32, Ways)>)>,
    /// The netdev at whose hook its rules stand.
    pub(super) hook: Option<u32>,
    /// What was dropped by reason: all of it, and what the rules at its hook had counted.
    pub(super) dropped: BTreeMap<String, (Count, Count)>,
    /// Frames that met their first flow in software and in hardware, likewise.
    pub(super) first: ([u64; 2], [u64; 2]),
}

#[derive(Serialize, Deserialize)]
struct File {
    boot: String,
    ports: BTreeMap<Id, CarriedPort>,
}

/// Writes the file, whole or not at all.
///
/// # Errors
/// The file system's.
pub(super) fn write(path: &Path, ports: BTreeMap<Id, CarriedPort>) -> io::Result<()> {
    let boot = fs::read_to_string(BOOT)?;
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, serde_json::to_vec(&File { boot, ports })?)?;
    fs::rename(&fresh, path)
}

/// Reads the file and takes it away; nothing where there is none, or none of this boot.
///
/// # Errors
/// The file system's, and a file that is none of ours.
pub(super) fn take(path: &Path) -> io::Result<BTreeMap<Id, CarriedPort>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        bytes => bytes?,
    };
    // What is believed once must not be believed again, when rules and netdevs are others.
    fs::remove_file(path)?;
    let File { boot, ports } = serde_json::from_slice(&bytes)?;
    Ok(if boot == fs::read_to_string(BOOT)? { ports } else { BTreeMap::new() })
}

pub(super) const fn count(counters: Counters) -> Count {
    [counters.packets, counters.bytes]
}

pub(super) const fn counters([packets, bytes]: Count) -> Counters {
    Counters { packets, bytes }
}

pub(super) const fn ways(Traffic { received, sent }: Traffic) -> Ways {
    [received.packets, received.bytes, sent.packets, sent.bytes]
}

pub(super) const fn traffic([received, received_bytes, sent, sent_bytes]: Ways) -> Traffic {
    Traffic {
        received: Counters { packets: received, bytes: received_bytes },
        sent: Counters { packets: sent, bytes: sent_bytes },
    }
}

/// A netdev by its number, and what it had counted.
pub(super) fn stood(stood: Option<(u32, Ways)>) -> Option<(Ifindex, Traffic)> {
    let (ifindex, counted) = stood?;
    Some((Ifindex::new(ifindex)?, traffic(counted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_once_and_only_in_its_boot() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("counts.json");
        assert_eq!(take(&path).unwrap(), BTreeMap::new());
        let port = CarriedPort {
            moved: Some(([1, 2, 3, 4], Some((7, [5, 6, 7, 8])))),
            dropped: [("tag".to_owned(), ([1, 60], [1, 60]))].into(),
            ..CarriedPort::default()
        };
        let ports = BTreeMap::from([("web-1".parse().unwrap(), port)]);
        write(&path, ports.clone()).unwrap();
        assert_eq!(take(&path).unwrap(), ports);
        assert_eq!(take(&path).unwrap(), BTreeMap::new(), "it is gone");
        write(&path, ports).unwrap();
        let other = fs::read_to_string(&path).unwrap().replace("\"boot\":\"", "\"boot\":\"x");
        fs::write(&path, other).unwrap();
        assert_eq!(take(&path).unwrap(), BTreeMap::new(), "of another boot");
        fs::write(&path, "no JSON").unwrap();
        take(&path).unwrap_err();
        assert!(!path.exists(), "it is not in the way of the next start");
    }
}
