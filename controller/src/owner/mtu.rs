//! Whether what a port's guest sends fits through the netdevs on its path.
//!
//! In: the MTUs that the host's netdevs have, the port's spec. Out: what its status says of them.
//! Nothing is set here: an uplink's MTU is the host's, a representor's follows its driver.

use api::resources::{Attachment, ConditionStatus, NetworkKind, PathMtu, PortSpec};

use super::{Owner, conditions::Statement};
use crate::{
    plan::{PortPlan, bind::Place},
    world::NetdevView,
};

/// Bytes of a VLAN tag.
const TAG: u32 = 4;

/// Bytes that so many tags need beyond the MTU: drivers make room for one at least, as the kernel does
/// where it forwards (`__is_skb_forwardable`, `include/linux/netdevice.h`).
const fn beyond(tags: u32) -> u32 {
    TAG * tags.saturating_sub(1)
}

/// The most bytes beyond the MTU that the port's frames have at its representor.
fn beyond_at_representor(spec: &PortSpec) -> u32 {
    let tags = |at: &Attachment| u32::from(at.tag.is_some()) + u32::from(at.qinq);
    spec.attachments.iter().map(|at| beyond(tags(at))).max().unwrap_or(0)
}

impl Owner {
    /// What the netdevs on a port's path carry, as far as it is known.
    pub(super) fn path_mtu(&self, place: &Place) -> Option<PathMtu> {
        let adapter = self.world.adapters.get(&place.adapter)?;
        let mtu =
            |netdev: &Option<NetdevView>| adapter.mtus.get(&netdev.as_ref()?.ifindex).copied();
        let uplink = mtu(&adapter.uplink).or_else(|| mtu(&adapter.pf));
        let path = PathMtu { representor: mtu(&place.representor), uplink };
        (path != PathMtu::default()).then_some(path)
    }

    /// Whether they carry what the port says that its guest sends.
    pub(super) fn mtu_statement(&self, plan: &PortPlan, spec: &PortSpec) -> Option<Statement> {
        use ConditionStatus::{False, True};
        let (mtu, place) = (u32::from(spec.mtu?), plan.place.as_ref().ok()?);
        let adapter = self.world.adapters.get(&place.adapter)?;
        let has = self.path_mtu(place).unwrap_or_default();
        let uplink = adapter.uplink.as_ref().or(adapter.pf.as_ref());
        let representor = place.representor.as_ref();
        let on_the_way = [
            representor.zip(has.representor).map(|at| (at, beyond_at_representor(spec))),
            uplink.zip(has.uplink).zip(self.beyond_at_uplink(spec)),
        ];
        let say = |status, reason, message| Statement::new("PathMtu", status, reason, message);
        let short = |((netdev, has), beyond): ((&NetdevView, u32), u32)| {
            let needed = mtu + beyond;
            (has < needed).then(|| {
                let why = match beyond {
                    0 => String::new(),
                    _ => format!(", {beyond} of them for a second tag"),
                };
                let name = &netdev.name;
                format!(
                    "{name} has an MTU of {has}, the port's frames need {needed}{why}: `ip link \
                     set dev {name} mtu {needed}`, or a smaller `mtu`"
                )
            })
        };
        let short: Vec<String> = on_the_way.into_iter().flatten().filter_map(short).collect();
        Some(match short.is_empty() {
            true => say(True, "Sufficient", "the port's path carries its frames".to_owned()),
            false => say(False, "TooSmall", short.join("; ")),
        })
    }

    /// The most bytes beyond the MTU that the port's frames have on the wire; none where they never
    /// get there.
    fn beyond_at_uplink(&self, spec: &PortSpec) -> Option<u32> {
        let beyond = |at: &Attachment| {
            let network = self.intent.networks.get(&at.network)?;
            match network.spec.kind {
                NetworkKind::Isolated => None,
                NetworkKind::Flat => Some(beyond(0)),
                NetworkKind::Vlan(_) => Some(beyond(1 + u32::from(at.qinq))),
            }
        };
        spec.attachments.iter().filter_map(beyond).max()
    }
}
