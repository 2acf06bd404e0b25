//! The cache folder: one folder for each finished build step, named after a hash of its inputs.
//!
//! In: a step's name and inputs, and a closure that builds it. Out: the folder of the finished
//! step. A step is built in `.partial` and renamed into place: a folder that has its final name is
//! complete, whatever was killed when. Nothing here may write into a finished step.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::{At, Error, Result};

/// How long a finished step that nothing asks for any more is kept.
const KEEP_UNUSED: Duration = Duration::from_secs(7 * 24 * 3600);

/// A build step: its name and the hash of everything that goes into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    name: &'static str,
    key: String,
}

impl Step {
    /// A step from its inputs: recipe texts, package lists, the [`id`](Step::id)s of the steps that
    /// it builds on. Order and boundaries of the inputs count.
    pub fn new(name: &'static str, inputs: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in std::iter::once(&name).chain(inputs) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        let key = hash.finalize().iter().take(8).fold(String::new(), |mut key, byte| {
            // Writing to a String cannot fail.
            let _ = write!(key, "{byte:02x}");
            key
        });
        Self { name, key }
    }

    /// Its name, as progress shows it.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Name and key: the folder's name, and an input of the steps that build on this one.
    pub fn id(&self) -> String {
        format!("{}-{}", self.name, self.key)
    }
}

/// The lab's cache folder.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// The right to build; ends with the process, however that ends.
#[derive(Debug)]
pub struct BuildLock {
    _file: Flock<File>,
}

impl Cache {
    /// Opens (and creates) `eswitchd-lab` in `$XDG_CACHE_HOME` or `~/.cache`.
    ///
    /// # Errors
    /// Neither variable is set, or the folder cannot be made.
    pub fn open() -> Result<Self> {
        let base = std::env::var_os("XDG_CACHE_HOME")
            .filter(|path| Path::new(path).is_absolute())
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
            .ok_or_else(|| Error::Missing {
                what: "no folder for the cache".into(),
                remedy: "set HOME or XDG_CACHE_HOME".into(),
            })?;
        Self::at(base.join("eswitchd-lab"))
    }

    /// Opens (and creates) the cache in the given folder.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn at(folder: PathBuf) -> Result<Self> {
        for sub in [".partial", "log", "runs"] {
            fs::create_dir_all(folder.join(sub)).at(format!("creating {}", folder.display()))?;
        }
        Ok(Self { folder })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// File that keeps what the commands of a step print.
    pub fn log(&self, step: &str) -> PathBuf {
        self.folder.join("log").join(format!("{step}.log"))
    }

    /// Waits until no other process builds. `waiting` is called once if that takes time.
    ///
    /// # Errors
    /// The lock file cannot be opened or locked.
    pub fn lock(&self, waiting: impl FnOnce()) -> Result<BuildLock> {
        let path = self.folder.join("lock");
        let what = format!("locking {}", path.display());
        let open = || {
            File::options().create(true).truncate(false).write(true).open(&path).at(what.as_str())
        };
        let file = match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((file, _held)) => {
                waiting();
                Flock::lock(file, FlockArg::LockExclusive)
                    .map_err(|(_, errno)| errno)
                    .at(what.as_str())?
            }
        };
        Ok(BuildLock { _file: file })
    }

    /// The folder of a finished step.
    pub fn finished(&self, step: &Step) -> Option<PathBuf> {
        let folder = self.folder.join(step.id());
        folder.is_dir().then_some(folder)
    }

    /// Says that a step is in use, so that it is not removed as outdated.
    pub fn used(&self, step: &Step) {
        // Only a hint for `remove_outdated`: a cache that is read-only is still a good cache.
        if let Ok(folder) = File::open(self.folder.join(step.id())) {
            let _ = folder.set_modified(SystemTime::now());
        }
    }

    /// Builds a step and puts it into its place. `build` gets an empty folder to fill.
    ///
    /// # Errors
    /// What `build` answers, or the folders cannot be made or renamed. The step is then unfinished.
    pub fn build(
        &self,
        _lock: &BuildLock,
        step: &Step,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let partial = self.folder.join(".partial").join(step.id());
        remove(&partial)?;
        fs::create_dir(&partial).at(format!("creating {}", partial.display()))?;
        build(&partial)?;
        let place = self.folder.join(step.id());
        let outdated = self.folder.join(".partial").join(format!("{}.old", step.id()));
        if place.exists() {
            remove(&outdated)?;
            fs::rename(&place, &outdated).at(format!("moving {}", place.display()))?;
        }
        fs::rename(&partial, &place).at(format!("moving {}", partial.display()))?;
        remove(&outdated)?;
        Ok(place)
    }

    /// The folder of a step, which is built where it is not there yet; folders of the same name that
    /// are outdated then go.
    ///
    /// # Errors
    /// As [`lock`](Self::lock) and [`build`](Self::build).
    pub fn ready(
        &self,
        step: &Step,
        build: impl FnOnce(&BuildLock, &Path) -> Result<()>,
    ) -> Result<PathBuf> {
        if let Some(place) = self.finished(step) {
            self.used(step);
            return Ok(place);
        }
        let lock = self.lock(|| eprintln!("waits for another `cargo lab` that builds"))?;
        // That one may have built it.
        if let Some(place) = self.finished(step) {
            return Ok(place);
        }
        let place = self.build(&lock, step, |place| build(&lock, place))?;
        self.remove_outdated(&lock, &[step])?;
        Ok(place)
    }

    /// Removes what builds that were killed have left.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn remove_partial(&self, _lock: &BuildLock) -> Result<()> {
        for path in entries(&self.folder.join(".partial"))? {
            remove(&path)?;
        }
        Ok(())
    }

    /// Removes finished steps that are not among `current` and were not used for a week.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn remove_outdated(&self, _lock: &BuildLock, current: &[&Step]) -> Result<()> {
        let names: Vec<&str> = current.iter().map(|step| step.name).collect();
        let ids: Vec<String> = current.iter().map(|step| step.id()).collect();
        for path in entries(&self.folder)? {
            let id = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_step = names.iter().any(|name| id.starts_with(&format!("{name}-")));
            let unused = path
                .metadata()
                .and_then(|meta| meta.modified())
                .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > KEEP_UNUSED));
            if is_step && unused && !ids.contains(&id) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// An empty folder for one run of the lab VM, in the cache because it takes hard links to
    /// large binaries. Folders of processes that have ended are removed on the way.
    ///
    /// # Errors
    /// A folder cannot be made or removed.
    pub fn run_folder(&self) -> Result<RunFolder> {
        let runs = self.folder.join("runs");
        for path in entries(&runs)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let pid = name.split('.').next().unwrap_or_default();
            if !Path::new("/proc").join(pid).exists() {
                remove(&path)?;
            }
        }
        for number in 0.. {
            let path = runs.join(format!("{}.{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(RunFolder { path }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).at(format!("creating {}", path.display())),
            }
        }
        unreachable!("a process does not have 2^32 runs at once")
    }
}

/// A folder that lives as long as one run.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next run.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .at(format!("reading {}", folder.display()))
}

fn remove(path: &Path) -> Result<()> {
    let gone = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match gone {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.at(format!("removing {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("cache")).unwrap();
        (folder, cache)
    }

    #[test]
    fn a_key_changes_with_every_input_and_with_its_boundaries() {
        let ids: Vec<String> = [
            Step::new("root", &["a", "b"]),
            Step::new("root", &["ab"]),
            Step::new("root", &["a", "b", ""]),
            Step::new("root", &["b", "a"]),
            Step::new("kernel", &["a", "b"]),
        ]
        .iter()
        .map(Step::id)
        .collect();
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "{ids:?}");
        assert_eq!(Step::new("root", &["a", "b"]).id(), ids[0]);
    }

    #[test]
    fn a_step_that_failed_is_not_finished_and_is_built_from_nothing_again() {
        let (_folder, cache) = cache();
        let lock = cache.lock(|| ()).unwrap();
        let step = Step::new("root", &["1"]);
        let failed = cache.build(&lock, &step, |partial| {
            fs::write(partial.join("half"), "x").at("writing")?;
            Err(Error::Missing { what: "power".into(), remedy: "none".into() })
        });
        assert!(failed.is_err());
        assert_eq!(cache.finished(&step), None);

        let place = cache
            .build(&lock, &step, |partial| {
                assert!(!partial.join("half").exists(), "left over from the failed build");
                fs::write(partial.join("whole"), "x").at("writing")
            })
            .unwrap();
        assert_eq!(cache.finished(&step), Some(place.clone()));
        assert!(place.join("whole").exists());
    }

    #[test]
    fn a_build_that_was_killed_leaves_neither_a_finished_step_nor_the_lock() {
        let (_folder, cache) = cache();
        let step = Step::new("root", &["1"]);
        // A real process takes the lock, starts the step and is killed in the middle of it.
        let mut builder = std::process::Command::new("flock")
            .arg(cache.folder().join("lock"))
            .args(["sh", "-c", "mkdir -p \"$0\"/deep && echo started && exec sleep 1000"])
            .arg(cache.folder().join(".partial").join(step.id()))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = std::io::BufReader::new(builder.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        assert_eq!(line, "started\n");
        let sleeper = format!("/proc/{0}/task/{0}/children", builder.id());
        let sleeper: i32 = fs::read_to_string(sleeper).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(sleeper),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
        builder.wait().unwrap();

        let lock = cache.lock(|| ()).unwrap();
        assert_eq!(cache.finished(&step), None);
        cache.remove_partial(&lock).unwrap();
        assert!(!cache.folder().join(".partial").join(step.id()).exists());
    }

    #[test]
    fn only_one_process_builds_at_a_time() {
        let (_folder, cache) = cache();
        let held = cache.lock(|| ()).unwrap();
        let other = cache.clone();
        let (told, waits) = std::sync::mpsc::channel();
        let second = std::thread::spawn(move || {
            let _lock = other.lock(|| told.send("waits").unwrap()).unwrap();
            told_after(&other)
        });
        assert_eq!(waits.recv().unwrap(), "waits");
        fs::write(cache.folder().join("first"), "done").unwrap();
        drop(held);
        assert!(second.join().unwrap(), "the second builder ran before the first had ended");

        fn told_after(cache: &Cache) -> bool {
            cache.folder().join("first").exists()
        }
    }

    #[test]
    fn a_rebuilt_step_replaces_the_old_one_whole() {
        let (_folder, cache) = cache();
        let lock = cache.lock(|| ()).unwrap();
        let step = Step::new("disk", &["1"]);
        for file in ["old", "new"] {
            cache
                .build(&lock, &step, |partial| fs::write(partial.join(file), "").at("writing"))
                .unwrap();
        }
        let place = cache.finished(&step).unwrap();
        assert!(place.join("new").exists() && !place.join("old").exists());
    }

    #[test]
    fn outdated_steps_go_after_a_week_and_current_ones_stay() {
        let (_folder, cache) = cache();
        let lock = cache.lock(|| ()).unwrap();
        let [current, outdated, recent] = ["1", "2", "3"].map(|key| Step::new("root", &[key]));
        for step in [&current, &outdated, &recent] {
            let place = cache.build(&lock, step, |_| Ok(())).unwrap();
            if *step != recent {
                let long_ago = SystemTime::now() - KEEP_UNUSED - Duration::from_secs(60);
                File::open(place).unwrap().set_modified(long_ago).unwrap();
            }
        }
        cache.remove_outdated(&lock, &[&current]).unwrap();
        assert!(cache.finished(&current).is_some());
        assert!(cache.finished(&recent).is_some());
        assert!(cache.finished(&outdated).is_none());
    }
}
