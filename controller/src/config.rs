//! The configuration file: TOML in, checked [`Config`] out.
//!
//! An error names the file, the line and the remedy. Nothing is read from elsewhere.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use api::{
    server::{PeerMatch, PeerRole, Role},
    types::Id,
};
use nix::unistd::{Group, User};
use rustls_pki_types::DnsName;
use serde::Deserialize;

/// What the daemon is told at start.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder of the store; made if it is not there.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Where the API listens.
    #[serde(default)]
    pub api: ApiConfig,
    /// Where guests are found.
    #[serde(default)]
    pub guests: GuestsConfig,
    /// The adapters that the daemon may program. No other is touched.
    #[serde(default, rename = "adapter")]
    pub adapters: Vec<AdapterConfig>,
}

/// Where the API listens.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// Unix socket; its folder must exist.
    pub unix: Option<PathBuf>,
    /// Permission bits of the Unix socket.
    pub unix_mode: u32,
    /// The group that the Unix socket belongs to; the daemon's own where absent.
    pub unix_group: Option<String>,
    /// Loopback addresses for plain HTTP; each request needs a token.
    pub tcp: Vec<SocketAddr>,
    /// Addresses for metrics, liveness and readiness alone: whoever reaches them may read these.
    pub metrics: Vec<SocketAddr>,
    /// File of bearer tokens; plain HTTP needs it.
    pub tokens: Option<PathBuf>,
    /// TLS.
    pub tls: Option<TlsConfig>,
    /// Roles of users and groups on the Unix socket; where there are none, whoever can open it is
    /// an administrator.
    pub peer: Vec<PeerConfig>,
    /// Roles of client certificates.
    pub client: Vec<ClientConfig>,
}

/// Where the API listens for TLS.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Addresses.
    pub listen: Vec<SocketAddr>,
    /// The daemon's certificate and those between it and its CA, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Whose certificates clients are known by, PEM.
    pub client_ca: Option<PathBuf>,
}

/// The role of a user, or of a group's members, on the Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// A user, by name or number.
    pub user: Option<String>,
    /// A group, by name or number.
    pub group: Option<String>,
    /// `read`, `write` or `admin`.
    pub role: String,
}

/// The role of who comes with a certificate for a name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// A DNS name that the certificate is for (its subject alternative name).
    pub name: String,
    /// `read`, `write` or `admin`.
    pub role: String,
}

impl ApiConfig {
    /// The group of the Unix socket.
    ///
    /// # Errors
    /// There is no such group.
    pub fn unix_gid(&self) -> Result<Option<u32>, String> {
        self.unix_group.as_deref().map(gid).transpose()
    }

    /// The roles on the Unix socket.
    ///
    /// # Errors
    /// A user, group or role is none.
    pub fn peers(&self) -> Result<Vec<PeerRole>, String> {
        let peers = self.peer.iter().map(|peer| {
            let who = match (&peer.user, &peer.group) {
                (Some(user), None) => PeerMatch::User(uid(user)?),
                (None, Some(group)) => PeerMatch::Group(gid(group)?),
                _ => return Err("an api.peer is either user or group: give exactly one".into()),
            };
            Ok(PeerRole { who, role: peer.role.parse()? })
        });
        peers.collect()
    }

    /// The roles of certificates.
    ///
    /// # Errors
    /// A name or role is none.
    pub fn clients(&self) -> Result<Vec<(DnsName<'static>, Role)>, String> {
        let clients = self.client.iter().map(|client| {
            let name = DnsName::try_from(client.name.clone())
                .map_err(|_| format!("`{}` is no DNS name", client.name))?;
            Ok((name, client.role.parse()?))
        });
        clients.collect()
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        if !self.tcp.is_empty() && self.tokens.is_none() {
            let message = "api.tcp: every user and program of the host could change everything; \
                           name a file of tokens in [api] (tokens = \"/etc/eswitchd/tokens\"), or \
                           listen on the Unix socket alone";
            return Err(("tcp", message.into()));
        }
        if let Some(tls) = &self.tls {
            if tls.client_ca.is_none() && self.tokens.is_none() {
                let message = "api.tls: nobody could be told from anybody else; name a client_ca, \
                               or a file of tokens in [api]";
                return Err(("[api.tls]", message.into()));
            }
            if tls.listen.is_empty() {
                return Err(("[api.tls]", "api.tls: listen is empty; name an address".into()));
            }
        }
        if !self.client.is_empty() && self.tls.as_ref().is_none_or(|tls| tls.client_ca.is_none()) {
            let message = "api.client: nothing asks clients for certificates; add [api.tls] with \
                           client_ca";
            return Err(("[[api.client]]", message.into()));
        }
        self.unix_gid().map_err(|message| ("unix_group", message))?;
        self.peers().map_err(|message| ("[[api.peer]]", message))?;
        self.clients().map_err(|message| ("[[api.client]]", message))?;
        Ok(())
    }
}

/// A user's number.
fn uid(user: &str) -> Result<u32, String> {
    if let Ok(number) = user.parse() {
        return Ok(number);
    }
    match User::from_name(user) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        _ => Err(format!("there is no user `{user}`: name one, or its number")),
    }
}

/// A group's number.
fn gid(group: &str) -> Result<u32, String> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    match Group::from_name(group) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        _ => Err(format!("there is no group `{group}`: name one, or its number")),
    }
}

/// Where guests are found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuestsConfig {
    /// Folder with one QMP socket a guest, `<guest id>.sock`; watched.
    pub qmp_dir: Option<PathBuf>,
}

/// One adapter that the daemon may program.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// Devlink handle of a NIC, `pci/0000:03:00.0`.
    pub handle: Option<String>,
    /// Name of a software adapter.
    pub software: Option<String>,
    /// The uplink netdev. A NIC in switchdev mode has its own; a software adapter without one has
    /// local ports only.
    pub uplink: Option<String>,
    /// Names of a software adapter's representors; `*` stands for any text.
    #[serde(default)]
    pub representors: Vec<String>,
    /// Whether the host itself uses the uplink.
    #[serde(default)]
    pub uplink_use: UplinkUse,
    /// Whether clients of the API may change the NIC's eswitch mode and its number of VFs.
    #[serde(default)]
    pub manage_eswitch: bool,
    /// The most VFs that they may ask for.
    pub max_vfs: Option<u16>,
    /// Flows that the NIC's hardware has room for, as its vendor says: for the alert before it is
    /// full. Nothing is refused because of it.
    pub hardware_flows: Option<u64>,
    /// Whether the daemon makes vDPA devices for ports, and removes those that it made.
    #[serde(default)]
    pub vdpa: VdpaUse,
    /// The vDPA management device of a software adapter, as `vdpa mgmtdev show` prints it: each of
    /// its representors gets a device there. A NIC's VFs are their own.
    pub vdpa_management: Option<String>,
}

/// Who makes and removes vDPA devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VdpaUse {
    /// Others do: the daemon touches none.
    #[default]
    Leave,
    /// The daemon, under names of its own (`eswd-…`), for ports whose VF is named beforehand.
    Manage,
}

/// Whether the host itself uses the uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UplinkUse {
    /// Frames to the uplink's own address pass to the host, and a flat network's broadcast is
    /// delivered to the host as well.
    #[default]
    Shared,
    /// Frames of networks that live here never reach the host.
    Exclusive,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}; name another file with --config, or create this one")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}:{line}: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong and what would be right.
        message: String,
    },
}

fn default_state_dir() -> PathBuf {
    "/var/lib/eswitchd".into()
}

impl Default for ApiConfig {
    fn default() -> Self {
        ApiConfig {
            unix: Some("/run/eswitchd/api.sock".into()),
            unix_mode: 0o660,
            unix_group: None,
            tcp: Vec::new(),
            metrics: Vec::new(),
            tokens: None,
            tls: None,
            peer: Vec::new(),
            client: Vec::new(),
        }
    }
}

impl Config {
    /// Reads and checks a configuration file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Self::parse(path, &text)
    }

    /// Checks the text of a configuration file; `path` is for error messages only.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Config = toml::from_str(text).map_err(|error| ConfigError::Invalid {
            path: path.into(),
            line: error.span().map_or(1, |span| line_of(text, span.start)),
            message: error.message().trim().replace('\n', "; "),
        })?;
        config.check(text).map_err(|(line, message)| ConfigError::Invalid {
            path: path.into(),
            line,
            message,
        })?;
        Ok(config)
    }

    /// The adapters with their ids.
    pub fn adapters(&self) -> Vec<(Id, AdapterConfig)> {
        self.adapters.iter().filter_map(|a| Some((a.check().ok()?, a.clone()))).collect()
    }

    /// What the types cannot say. The error is a line and a message.
    fn check(&self, text: &str) -> Result<(), (usize, String)> {
        for address in &self.api.tcp {
            if !address.ip().is_loopback() {
                return Err((
                    line_containing(text, &address.to_string()),
                    format!(
                        "api.tcp: {address} is not a loopback address, and what goes over it is \
                         not encrypted; use 127.0.0.1 or [::1], or [api.tls]"
                    ),
                ));
            }
        }
        self.api.check().map_err(|(place, message)| (line_containing(text, place), message))?;
        if let Some(dir) = &self.guests.qmp_dir
            && !dir.is_absolute()
        {
            return Err((
                line_containing(text, "qmp_dir"),
                format!(
                    "guests.qmp_dir: `{}` is not absolute; write the whole path",
                    dir.display()
                ),
            ));
        }
        let mut ids = BTreeSet::new();
        let headers = lines_with(text, "[[adapter]]");
        for (index, adapter) in self.adapters.iter().enumerate() {
            let line = headers.get(index).copied().unwrap_or(1);
            let id = adapter.check().map_err(|message| (line, message))?;
            if !ids.insert(id.clone()) {
                return Err((line, format!("adapter `{id}` is there twice; keep one")));
            }
        }
        Ok(())
    }
}

impl AdapterConfig {
    /// The adapter's URL-safe id: `pci-0000:03:00.0`, `soft-lab`.
    ///
    /// # Errors
    /// Says what is wrong with the entry and what would be right.
    pub fn check(&self) -> Result<Id, String> {
        match (self.vdpa, &self.software, &self.vdpa_management) {
            (VdpaUse::Manage, Some(_), None) => {
                return Err(
                    "a software adapter has no VFs that make vDPA devices: name what does, \
                            vdpa_management = \"vdpasim_net\" for example, or remove `vdpa`"
                        .into(),
                );
            }
            (VdpaUse::Leave, _, Some(_)) => {
                return Err(
                    "`vdpa_management` says what makes vDPA devices, and nobody is to make \
                            any: add vdpa = \"manage\", or remove it"
                        .into(),
                );
            }
            (VdpaUse::Manage, None, Some(_)) => {
                return Err(
                    "`vdpa_management` is for software adapters; a NIC's VFs make their own \
                            vDPA devices: remove it"
                        .into(),
                );
            }
            _ => {}
        }
        if self.manage_eswitch && self.software.is_some() {
            return Err(
                "a software adapter has no eswitch to manage: remove `manage_eswitch`".into()
            );
        }
        if self.hardware_flows.is_some() && self.software.is_some() {
            return Err("a software adapter has no hardware: remove `hardware_flows`".into());
        }
        if self.max_vfs.is_some() && !self.manage_eswitch {
            return Err(
                "`max_vfs` bounds what clients may ask for, and they may ask for nothing: \
                        add manage_eswitch = true, or remove it"
                    .into(),
            );
        }
        let text = match (&self.handle, &self.software) {
            (Some(handle), None) => {
                if !self.representors.is_empty() {
                    return Err("`representors` is for software adapters; a NIC's are found over \
                                devlink: remove it"
                        .into());
                }
                match handle.split_once('/') {
                    Some((bus, device)) if !bus.is_empty() && !device.is_empty() => {
                        format!("{bus}-{device}")
                    }
                    _ => {
                        return Err(format!(
                            "`{handle}` is not a devlink handle; write BUS/DEVICE as `devlink dev` \
                             prints it, pci/0000:03:00.0 for example"
                        ));
                    }
                }
            }
            (None, Some(name)) => {
                if self.representors.is_empty() {
                    return Err(format!(
                        "software adapter `{name}` has no representors; name its netdevs, \
                         representors = [\"tap*\"] for example"
                    ));
                }
                format!("soft-{name}")
            }
            _ => {
                return Err(
                    "an adapter is either handle = \"pci/…\" or software = \"NAME\": give \
                            exactly one of the two"
                        .into(),
                );
            }
        };
        text.parse().map_err(|error| format!("{error}"))
    }
}

/// The line, from 1, of a byte offset.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

/// The lines, from 1, whose text begins with `needle`.
fn lines_with(text: &str, needle: &str) -> Vec<usize> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| line.trim_start().starts_with(needle))
        .map(|(index, _)| index + 1)
        .collect()
}

/// The first line that contains `needle`, from 1; 1 if none does.
fn line_containing(text: &str, needle: &str) -> usize {
    text.lines().position(|line| line.contains(needle)).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("/etc/eswitchd.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_means_the_defaults_and_no_adapter() {
        let config = parse("").unwrap();
        assert_eq!(config.api.unix.as_deref(), Some(Path::new("/run/eswitchd/api.sock")));
        assert!(config.adapters.is_empty());
    }

    #[test]
    fn adapters_get_ids_that_are_safe_in_urls() {
        let config = parse(
            "[[adapter]]\nhandle = \"pci/0000:03:00.0\"\n\n\
             [[adapter]]\nsoftware = \"lab\"\nrepresentors = [\"tap*\"]\n",
        )
        .unwrap();
        let ids: Vec<String> =
            config.adapters.iter().map(|a| a.check().unwrap().to_string()).collect();
        assert_eq!(ids, ["pci-0000:03:00.0", "soft-lab"]);
    }

    #[test]
    fn a_wrong_configuration_names_file_line_and_remedy() {
        let cases = [
            ("state_dir = 7\n", "/etc/eswitchd.toml:1:", "string"),
            ("\n[apy]\n", "/etc/eswitchd.toml:2:", "expected one of"),
            ("[api]\ntcp = [\"0.0.0.0:1\"]\n", "/etc/eswitchd.toml:2:", "use 127.0.0.1"),
            ("[api]\ntcp = [\"127.0.0.1:1\"]\n", "/etc/eswitchd.toml:2:", "a file of tokens"),
            (
                "[api.tls]\nlisten = [\"0.0.0.0:1\"]\ncertificate = \"c\"\nkey = \"k\"\n",
                "/etc/eswitchd.toml:1:",
                "name a client_ca",
            ),
            (
                "[api]\n[[api.client]]\nname = \"a\"\nrole = \"read\"\n",
                "/etc/eswitchd.toml:2:",
                "add [api.tls]",
            ),
            (
                "[[api.peer]]\nuser = \"no-such-user\"\nrole = \"read\"\n",
                "/etc/eswitchd.toml:1:",
                "name one, or its number",
            ),
            (
                "[[api.peer]]\ngroup = \"0\"\nrole = \"king\"\n",
                "/etc/eswitchd.toml:1:",
                "use read, write or admin",
            ),
            ("[guests]\nqmp_dir = \"qmp\"\n", "/etc/eswitchd.toml:2:", "whole path"),
            ("\n\n[[adapter]]\n", "/etc/eswitchd.toml:3:", "exactly one"),
            ("[[adapter]]\nhandle = \"mlx\"\n", "/etc/eswitchd.toml:1:", "BUS/DEVICE"),
            ("[[adapter]]\nsoftware = \"x\"\n", "/etc/eswitchd.toml:1:", "representors ="),
            (
                "[[adapter]]\nsoftware = \"x\"\nrepresentors = [\"t\"]\nvdpa = \"manage\"\n",
                "/etc/eswitchd.toml:1:",
                "vdpa_management =",
            ),
            (
                "[[adapter]]\nhandle = \"a/b\"\nmax_vfs = 4\n",
                "/etc/eswitchd.toml:1:",
                "manage_eswitch = true",
            ),
            (
                "[[adapter]]\nsoftware = \"x\"\nrepresentors = [\"t\"]\nhardware_flows = 9\n",
                "/etc/eswitchd.toml:1:",
                "remove `hardware_flows`",
            ),
            (
                "[[adapter]]\nsoftware = \"x\"\nrepresentors = [\"t\"]\nmanage_eswitch = true\n",
                "/etc/eswitchd.toml:1:",
                "remove `manage_eswitch`",
            ),
            (
                "[[adapter]]\nhandle = \"a/b\"\nvdpa_management = \"sim\"\n",
                "/etc/eswitchd.toml:1:",
                "vdpa = \"manage\"",
            ),
            (
                "[[adapter]]\nhandle = \"a/b\"\nvdpa = \"manage\"\nvdpa_management = \"sim\"\n",
                "/etc/eswitchd.toml:1:",
                "remove it",
            ),
            (
                "[[adapter]]\nhandle = \"a/b\"\n[[adapter]]\nhandle = \"a/b\"\n",
                "/etc/eswitchd.toml:3:",
                "keep one",
            ),
        ];
        for (text, place, remedy) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(place) && error.contains(remedy), "{text:?}: {error}");
        }
    }
}
