//! Which netdevs' `hw-tc-offload` this daemon has switched on, so that a teardown can put it back.
//!
//! One file a netdev in a folder of the state folder: its name is the netdev's, its text the
//! interface index. It is written before the switch is thrown: a netdev that was on already has
//! none. Nothing here outlives the host: after a reboot the indexes are others, and so is the switch.

use std::{fs, io, path::PathBuf, sync::Arc};

use tc_flows::Ifindex;

use crate::world::NetdevView;

/// The netdevs that were switched on.
#[derive(Debug, Clone)]
pub(crate) struct Switched {
    folder: Arc<PathBuf>,
}

impl Switched {
    /// Those noted in this folder, which need not be there.
    pub(crate) fn in_folder(folder: PathBuf) -> Switched {
        Switched { folder: Arc::new(folder) }
    }

    /// Notes a netdev.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn note(&self, netdev: &NetdevView) -> io::Result<()> {
        fs::create_dir_all(&*self.folder)?;
        fs::write(self.folder.join(&netdev.name), netdev.ifindex.get().to_string())
    }

    /// Forgets a netdev; one that is not noted is forgotten already.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn forget(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.folder.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// All that are noted, by name; a note that cannot be read is of a netdev that is gone.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(crate) fn all(&self) -> io::Result<Vec<(String, Option<Ifindex>)>> {
        let entries = match fs::read_dir(&*self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            all.push((name, text.trim().parse().ok().and_then(Ifindex::new)));
        }
        all.sort();
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_known_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let switched = Switched::in_folder(folder.path().join("on"));
        assert_eq!(switched.all().unwrap(), []);
        let netdev = |number: u32, name: &str| NetdevView {
            ifindex: Ifindex::new(number).unwrap(),
            name: name.into(),
            mac: None,
        };
        for (number, name) in [(7, "rep1"), (8, "rep0"), (9, "rep1")] {
            switched.note(&netdev(number, name)).unwrap();
        }
        let expected = [("rep0".to_owned(), Ifindex::new(8)), ("rep1".to_owned(), Ifindex::new(9))];
        assert_eq!(switched.all().unwrap(), expected);
        switched.forget("rep1").unwrap();
        switched.forget("rep1").unwrap();
        assert_eq!(switched.all().unwrap(), expected[..1]);
    }
}
