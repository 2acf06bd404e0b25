//! The browser: a headless Chromium in a root file system of its own, beside the lab, since the VM's
//! emulation is too slow for it.
//!
//! In: the Debian mirror that the lab is made from. Out: a program in the cache that speaks the
//! Chrome DevTools Protocol over its standard streams. Nothing is installed into the machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Instant;

use super::{Progress, SUITE, Source, Work, install_tools};
use crate::cache::{Cache, Step};
use crate::{At, Result};

/// What its root file system holds, beyond Debian's minimal variant.
const PACKAGES: &[&str] = &["chromium-headless-shell", "fonts-dejavu-core"];

/// Runs it in its root, with mounts and processes of its own. It reads commands at descriptor 3 and
/// answers at 4. Its own sandbox would refuse root; it is shown nothing but pages of the tests.
const WRAPPER: &str = r#"#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
exec unshare --mount --fork --pid --kill-child=KILL -- sh -euc '
    mount -t proc proc "$0/proc"
    mount -t tmpfs tmpfs "$0/tmp"
    mount -t tmpfs tmpfs "$0/dev/shm"
    export HOME=/tmp LC_ALL=C.UTF-8
    exec chroot "$0" /usr/lib/chromium/chromium-headless-shell --no-sandbox --disable-gpu \
        --remote-debugging-pipe --user-data-dir=/tmp/profile --hide-scrollbars \
        --force-color-profile=srgb "$@" 3<&0 4>&1 </dev/null >/dev/null
' "$root" "$@"
"#;

/// The browser's program, built if it is not in the cache.
///
/// # Errors
/// As [`ready`](super::ready).
pub fn chromium() -> Result<PathBuf> {
    let cache = Cache::open()?;
    let step = Step::new("browser", &[SUITE, &PACKAGES.join(" "), WRAPPER]);
    let place = cache.ready(&step, |lock, place| {
        let progress = Progress { start: Instant::now() };
        install_tools(&cache, progress)?;
        let work = Work { cache: &cache, lock, progress, force: false };
        Source::find()?.bootstrap(&work, "browser", PACKAGES, &[], &place.join("root"))?;
        let wrapper = place.join("chromium");
        fs::write(&wrapper, WRAPPER)
            .and_then(|()| fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755)))
            .at("writing the browser's wrapper")
    })?;
    Ok(place.join("chromium"))
}
