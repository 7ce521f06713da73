//! The documents of an image, as far as hull reads them (OCI image specification 1.1; Docker's schema 2 has
//! the same shape).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::ImageError;

/// Most bytes of an index, a manifest or a configuration.
pub const MAX_DOCUMENT: u64 = 8 << 20;
/// Most layers: as many as engines make, and more than one disk can have files.
const MAX_LAYERS: usize = 512;

/// By which a document names content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// What computers it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// More about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A kind of computers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// The processor's architecture, in Go's words.
    pub architecture: String,
    /// The operating system.
    pub os: String,
    /// The version of the architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    fn runs(&self) -> bool {
        self.architecture == "amd64" && self.os == "linux"
    }

    fn name(&self) -> String {
        let variant = self.variant.as_ref().map(|variant| format!("/{variant}"));
        let name = format!(
            "{}/{}{}",
            self.os,
            self.architecture,
            variant.unwrap_or_default()
        );
        name.chars()
            .filter(|c| c.is_ascii_graphic())
            .take(40)
            .collect()
    }
}

/// An index or a manifest, whichever it is.
#[derive(Debug, Deserialize)]
pub struct Either {
    /// The manifests of an index.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
    /// The configuration of a manifest.
    pub config: Option<Descriptor>,
    /// The layers of a manifest, the lowest first.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
}

/// An image's configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Configuration {
    /// The processor's architecture.
    #[serde(default)]
    pub architecture: String,
    /// The operating system.
    #[serde(default)]
    pub os: String,
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// What runs in it.
    #[serde(default)]
    pub config: Option<Execution>,
    /// Its layers.
    #[serde(default)]
    pub rootfs: RootFs,
}

/// The layers of an image.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// The digests of the layers as plain tar archives, the lowest first.
    #[serde(default)]
    pub diff_ids: Vec<Digest>,
}

/// What runs in an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Execution {
    /// User and perhaps group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Ports that it serves, such as `80/tcp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    /// Variables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// The beginning of the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Its arguments, which the user's replace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Folders for data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
    /// The command's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// The signal that ends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// How its health is checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
}

/// How the health of an image's machine is checked (Docker Image Specification 1.2, Healthcheck). 0 stands for the
/// default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// NONE, or CMD with arguments, or CMD-SHELL with a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<Vec<String>>,
    /// Nanoseconds from one check to the next.
    pub interval: i64,
    /// Nanoseconds that a check has.
    pub timeout: i64,
    /// Nanoseconds from the start in which failures do not count.
    pub start_period: i64,
    /// Failures one after another that count.
    pub retries: i64,
}

/// Read a JSON document.
///
/// # Errors
/// [`ImageError::Document`].
pub fn parse<T: for<'a> Deserialize<'a>>(what: &str, bytes: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| document(what, error))
}

pub(super) fn document(what: &str, reason: impl ToString) -> ImageError {
    ImageError::Document {
        what: what.into(),
        reason: reason.to_string(),
    }
}

/// The manifest for this computer.
///
/// # Errors
/// [`ImageError::Platform`] if there is none.
pub fn choose(manifests: &[Descriptor]) -> Result<&Descriptor, ImageError> {
    let runs = |it: &&Descriptor| it.platform.as_ref().is_some_and(Platform::runs);
    if let Some(found) = manifests.iter().find(runs) {
        return Ok(found);
    }
    // Its configuration will say what a single one is for.
    if let [single @ Descriptor { platform: None, .. }] = manifests {
        return Ok(single);
    }
    let mut names: Vec<_> = manifests
        .iter()
        .filter_map(|it| it.platform.as_ref())
        .collect();
    names.retain(|platform| platform.os != "unknown");
    let mut names: Vec<_> = names.into_iter().map(Platform::name).take(20).collect();
    names.dedup();
    Err(ImageError::Platform {
        found: match names.is_empty() {
            true => "no platform that it names".into(),
            false => names.join(", "),
        },
    })
}

impl Configuration {
    /// Refuse an image for other computers, or with layers that its manifest has not.
    ///
    /// # Errors
    /// [`ImageError::Platform`] or [`ImageError::Document`].
    pub fn check(&self, layers: usize) -> Result<(), ImageError> {
        let platform = Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            variant: None,
        };
        if !platform.runs() {
            return Err(ImageError::Platform {
                found: platform.name(),
            });
        }
        let ids = self.rootfs.diff_ids.len();
        if ids != layers {
            let reason = format!("it names {ids} layers, and the manifest {layers}");
            return Err(document("the image's configuration", reason));
        }
        if !(1..=MAX_LAYERS).contains(&ids) {
            let reason = format!("it names {ids} layers; hull takes 1 to {MAX_LAYERS}");
            return Err(document("the image's configuration", reason));
        }
        Ok(())
    }
}
