//! How far a port's wish has come: from what was asked for to frames that met its rules.
//!
//! In: what the daemon knows of each link of that chain. Out: the links, and the first that does not
//! hold.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::types::Id;

/// How far a port has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The port.
    pub port: Id,
    /// From `asked` to `hit`, always all of them, in this order.
    pub links: Vec<Link>,
    /// The first link that is broken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken: Option<LinkName>,
}

impl Explanation {
    /// The explanation that these links make.
    pub fn of(port: Id, links: Vec<Link>) -> Explanation {
        let broken = links.iter().find(|link| link.state == LinkState::Broken);
        let broken = broken.map(|link| link.link);
        Explanation { port, links, broken }
    }
}

/// One link of the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Link {
    /// Which.
    pub link: LinkName,
    /// Whether it holds.
    pub state: LinkState,
    /// What is so, in a sentence.
    pub message: String,
    /// What to do about it, where that is not in the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// The links, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinkName {
    /// A client asked for it, and for something that can pass frames.
    Asked,
    /// Its VF is there, and what it stands on is known.
    Seen,
    /// There are addresses that it may send from, and rules or settings that follow from it.
    Planned,
    /// The kernel has them.
    Installed,
    /// The hardware has them.
    InHardware,
    /// Frames have met them.
    Hit,
}

impl LinkName {
    /// In a few words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Seen => "seen",
            Self::Planned => "planned",
            Self::Installed => "installed",
            Self::InHardware => "in hardware",
            Self::Hit => "hit",
        }
    }
}

/// Whether a link holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// It does.
    Holds,
    /// It holds in part, or otherwise than one might wish.
    Partly,
    /// It does not.
    Broken,
    /// Not yet: it is on its way, or waits for a link before it.
    Waiting,
    /// There is no such link here.
    Absent,
}
