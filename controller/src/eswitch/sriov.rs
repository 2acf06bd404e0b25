//! The life of an eswitch's VFs: how many there are, in which mode, and the way from one to another.
//!
//! In: what is and what is wanted. Out: the next step, until there is none. A mode changes only
//! while there are no VFs: several drivers refuse it otherwise (ice, `ice_eswitch_mode_set` in
//! `drivers/net/ethernet/intel/ice/ice_eswitch.c`) or need every VF unbound (mlx5), and a VF that
//! is made anew carries nothing of the old mode. A number of VFs changes only through none
//! (`sriov_numvfs_store` in `drivers/pci/pci-sysfs.c`).
//!
//! Each step is chosen by what the NIC says then, never by what was done before: whoever begins
//! again in the middle goes on from there. Nothing here decides what is wanted, or goes back.

use std::{fmt, future::Future, path::PathBuf};

use api::resources::{EswitchMode, EswitchShape};
use nix::errno::Errno;

use super::{
    EswitchHandle, KernelRefusal,
    devlink::{Devlink, DevlinkMode, DevlinkName},
    netlink::errno_text,
};

/// More steps than any way has: a driver that does not stay where it was put is given up.
const STEPS_MAX: usize = 8;

/// One step on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Removes all VFs.
    RemoveVfs,
    /// Changes the mode.
    Mode(EswitchMode),
    /// Makes that many VFs.
    MakeVfs(u16),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::RemoveVfs => f.write_str("remove all VFs"),
            Step::Mode(EswitchMode::Switchdev) => f.write_str("set the mode switchdev"),
            Step::Mode(_) => f.write_str("set the mode legacy"),
            Step::MakeVfs(1) => f.write_str("make 1 VF"),
            Step::MakeVfs(count) => write!(f, "make {count} VFs"),
        }
    }
}

/// The next step from `now` to `wanted`; `None` where nothing is left to do.
pub(crate) fn next_step(now: EswitchShape, wanted: EswitchShape) -> Option<Step> {
    if now == wanted {
        None
    } else if now.num_vfs > 0 {
        Some(Step::RemoveVfs)
    } else if now.mode != wanted.mode {
        Some(Step::Mode(wanted.mode))
    } else {
        Some(Step::MakeVfs(wanted.num_vfs))
    }
}

/// The whole way, on a NIC that does what it is told and nothing else.
pub(crate) fn way(mut now: EswitchShape, wanted: EswitchShape) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some(step) = next_step(now, wanted) {
        match step {
            Step::RemoveVfs => now.num_vfs = 0,
            Step::Mode(mode) => now.mode = mode,
            Step::MakeVfs(count) => now.num_vfs = count,
        }
        steps.push(step);
    }
    steps
}

/// A NIC, as far as this is about it.
pub(crate) trait Nic {
    /// How it is now.
    fn shape(&self) -> impl Future<Output = Result<EswitchShape, KernelRefusal>> + Send;

    /// Takes a step.
    fn take(&self, step: Step) -> impl Future<Output = Result<(), KernelRefusal>> + Send;
}

/// Goes all the way.
///
/// # Errors
/// The step that the kernel refused; those before it are done. `ELOOP` where the NIC does not stay
/// where it was put.
pub(crate) async fn bring(nic: &impl Nic, wanted: EswitchShape) -> Result<(), KernelRefusal> {
    for _ in 0..STEPS_MAX {
        let Some(step) = next_step(nic.shape().await?, wanted) else { return Ok(()) };
        tracing::info!(%step, "eswitch");
        nic.take(step).await?;
    }
    match next_step(nic.shape().await?, wanted) {
        None => Ok(()),
        Some(step) => Err(KernelRefusal {
            errno: Errno::ELOOP as i32,
            message: "the driver does not stay where it is put".into(),
            what: step.to_string(),
        }),
    }
}

/// A NIC of this host.
#[derive(Debug)]
pub(crate) struct HostNic {
    device: DevlinkName,
    devlink: Devlink,
    num_vfs: PathBuf,
}

impl HostNic {
    /// The device of this name.
    pub(crate) fn new(device: DevlinkName, eswitch: &EswitchHandle) -> HostNic {
        let folder = PathBuf::from("/sys/bus").join(&device.bus).join("devices");
        let num_vfs = folder.join(&device.device).join("sriov_numvfs");
        HostNic { devlink: eswitch.devlink(), device, num_vfs }
    }

    /// Sysfs is worked on where a driver that takes its time stops nobody.
    async fn sysfs<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(PathBuf) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, KernelRefusal> {
        let path = self.num_vfs.clone();
        let done = tokio::task::spawn_blocking(move || work(path)).await;
        done.map_err(std::io::Error::other).flatten().map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(Errno::EIO as i32);
            let message = errno_text(errno);
            KernelRefusal { errno, message, what: format!("{what} of {}", self.device) }
        })
    }
}

impl Nic for HostNic {
    async fn shape(&self) -> Result<EswitchShape, KernelRefusal> {
        // The sysfs of a network namespace that this process is in.
        let text = self.sysfs("read sriov_numvfs", std::fs::read_to_string).await?;
        let num_vfs = text.trim().parse().unwrap_or(0);
        let mode = match self.devlink.eswitch(&self.device).await {
            Ok(Some(eswitch)) if eswitch.mode == DevlinkMode::Switchdev => EswitchMode::Switchdev,
            Ok(_) => EswitchMode::Legacy,
            // No devlink for this device, or none at all.
            Err(refusal)
                if [Errno::ENODEV as i32, Errno::ENOENT as i32].contains(&refusal.errno) =>
            {
                EswitchMode::Legacy
            }
            Err(refusal) => return Err(refusal),
        };
        Ok(EswitchShape { mode, num_vfs })
    }

    async fn take(&self, step: Step) -> Result<(), KernelRefusal> {
        let write = async |count: u16| {
            let what = format!("write {count} to sriov_numvfs");
            self.sysfs(&what, move |path| std::fs::write(path, count.to_string())).await
        };
        match step {
            Step::RemoveVfs => write(0).await,
            Step::MakeVfs(count) => write(count).await,
            Step::Mode(mode) => {
                let mode = match mode {
                    EswitchMode::Switchdev => DevlinkMode::Switchdev,
                    EswitchMode::Legacy | EswitchMode::Software => DevlinkMode::Legacy,
                };
                self.devlink.set_eswitch_mode(&self.device, mode).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const LEGACY: EswitchMode = EswitchMode::Legacy;
    const SWITCHDEV: EswitchMode = EswitchMode::Switchdev;

    fn shape(mode: EswitchMode, num_vfs: u16) -> EswitchShape {
        EswitchShape { mode, num_vfs }
    }

    fn all_shapes() -> Vec<EswitchShape> {
        [LEGACY, SWITCHDEV]
            .into_iter()
            .flat_map(|mode| [0, 1, 4].map(|vfs| shape(mode, vfs)))
            .collect()
    }

    #[test]
    fn a_mode_changes_while_there_are_no_vfs_and_a_number_through_none() {
        use Step::{MakeVfs, Mode, RemoveVfs};
        let of = |from: (EswitchMode, u16), to: (EswitchMode, u16)| {
            way(shape(from.0, from.1), shape(to.0, to.1))
        };
        assert_eq!(
            of((LEGACY, 4), (SWITCHDEV, 4)),
            [RemoveVfs, Mode(SWITCHDEV), MakeVfs(4)],
            "the same VFs in another mode"
        );
        assert_eq!(of((SWITCHDEV, 2), (LEGACY, 0)), [RemoveVfs, Mode(LEGACY)]);
        assert_eq!(of((LEGACY, 0), (LEGACY, 3)), [MakeVfs(3)]);
        assert_eq!(of((LEGACY, 2), (LEGACY, 3)), [RemoveVfs, MakeVfs(3)]);
        assert_eq!(of((LEGACY, 2), (LEGACY, 0)), [RemoveVfs]);
        for same in all_shapes() {
            assert_eq!(way(same, same), []);
        }
    }

    /// A NIC in memory.
    #[derive(Debug)]
    struct Fake {
        now: Mutex<EswitchShape>,
        /// As netdevsim: without VFs it is in legacy mode.
        falls_back: bool,
        /// This kind of step is refused.
        refuses: Option<Step>,
        /// The caller is killed after so many steps.
        dies_after: Mutex<Option<usize>>,
    }

    impl Fake {
        fn at(now: EswitchShape, falls_back: bool) -> Fake {
            Fake { now: now.into(), falls_back, refuses: None, dies_after: None.into() }
        }
    }

    impl Nic for Fake {
        async fn shape(&self) -> Result<EswitchShape, KernelRefusal> {
            Ok(*self.now.lock().unwrap())
        }

        async fn take(&self, step: Step) -> Result<(), KernelRefusal> {
            self.change(step)?;
            if self.dies() {
                std::future::pending::<()>().await;
            }
            Ok(())
        }
    }

    impl Fake {
        fn change(&self, step: Step) -> Result<(), KernelRefusal> {
            let mut now = self.now.lock().unwrap();
            let refusal = |message: &str| KernelRefusal {
                errno: 16,
                message: message.into(),
                what: step.to_string(),
            };
            if self.refuses == Some(step) {
                return Err(refusal("no"));
            }
            match step {
                Step::RemoveVfs => {
                    now.num_vfs = 0;
                    if self.falls_back {
                        now.mode = LEGACY;
                    }
                }
                Step::Mode(_) | Step::MakeVfs(_) if now.num_vfs > 0 => {
                    return Err(refusal("there are VFs"));
                }
                Step::Mode(mode) => now.mode = mode,
                Step::MakeVfs(count) => now.num_vfs = count,
            }
            Ok(())
        }

        fn dies(&self) -> bool {
            let mut left = self.dies_after.lock().unwrap();
            *left = left.map(|left| left.saturating_sub(1));
            *left == Some(0)
        }
    }

    /// Goes on until the end, or until the process would be killed.
    async fn run(nic: &Fake, wanted: EswitchShape) -> Option<Result<(), KernelRefusal>> {
        tokio::select! {
            biased;
            done = bring(nic, wanted) => Some(done),
            () = tokio::task::yield_now() => None,
        }
    }

    #[tokio::test]
    async fn every_shape_is_reached_from_every_other_also_where_vfs_that_go_take_the_mode_along() {
        for falls_back in [false, true] {
            for from in all_shapes() {
                for to in all_shapes() {
                    let nic = Fake::at(from, falls_back);
                    assert_eq!(bring(&nic, to).await, Ok(()), "{from:?} to {to:?}");
                    assert_eq!(*nic.now.lock().unwrap(), to);
                }
            }
        }
    }

    #[tokio::test]
    async fn whoever_is_killed_after_any_step_and_begins_again_gets_there() {
        for falls_back in [false, true] {
            for from in all_shapes() {
                for to in all_shapes() {
                    // Until it is there before it would be killed.
                    for killed_after in 1.. {
                        let nic = Fake::at(from, falls_back);
                        *nic.dies_after.lock().unwrap() = Some(killed_after);
                        let killed = run(&nic, to).await.is_none();
                        *nic.dies_after.lock().unwrap() = None;
                        assert_eq!(run(&nic, to).await, Some(Ok(())), "{from:?} to {to:?}");
                        assert_eq!(*nic.now.lock().unwrap(), to);
                        if !killed {
                            assert_eq!(killed_after > 1, from != to, "each step was one to die at");
                            break;
                        }
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn after_a_refusal_the_way_back_is_free() {
        let (from, to) = (shape(LEGACY, 4), shape(SWITCHDEV, 9));
        for refused in way(from, to) {
            let nic = Fake { refuses: Some(refused), ..Fake::at(from, false) };
            let refusal = bring(&nic, to).await.unwrap_err();
            assert_eq!((refusal.what, refusal.message), (refused.to_string(), "no".to_owned()));
            let nic = Fake { refuses: None, ..nic };
            assert_eq!(bring(&nic, from).await, Ok(()));
            assert_eq!(*nic.now.lock().unwrap(), from);
        }
    }

    #[tokio::test]
    async fn a_nic_that_does_not_stay_where_it_is_put_is_given_up() {
        #[derive(Debug)]
        struct Stubborn;
        impl Nic for Stubborn {
            async fn shape(&self) -> Result<EswitchShape, KernelRefusal> {
                Ok(shape(LEGACY, 0))
            }
            async fn take(&self, _: Step) -> Result<(), KernelRefusal> {
                Ok(())
            }
        }
        let refusal = bring(&Stubborn, shape(SWITCHDEV, 2)).await.unwrap_err();
        assert_eq!(refusal.errno, Errno::ELOOP as i32);
    }
}
