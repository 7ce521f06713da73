//! Writes OCI layouts.
#![allow(dead_code)] // each test program uses some of it

use std::fs;
use std::io::Write;
use std::path::Path;

use ::tar::{Builder, EntryType, Header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A layer that is being written.
pub struct Layer(Builder<Vec<u8>>);

impl Layer {
    pub fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub fn entry(
        mut self,
        kind: EntryType,
        path: &str,
        mode: u32,
        owner: (u64, u64),
        link: &str,
        data: &[u8],
    ) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        if !link.is_empty() {
            header.set_link_name(link).expect("a short link");
        }
        self.0
            .append_data(&mut header, path, data)
            .expect("in memory");
        self
    }
}

/// An OCI layout with one image.
pub struct Layout {
    folder: tempfile::TempDir,
    config: Value,
    /// The layers as plain archives.
    layers: Vec<Vec<u8>>,
}

pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

impl Layout {
    pub fn new(layers: Vec<Layer>, config: Value) -> Self {
        let layers = layers
            .into_iter()
            .map(|layer| layer.0.into_inner().expect("in memory"));
        let layout = Self {
            folder: tempfile::tempdir().expect("a folder"),
            config,
            layers: layers.collect(),
        };
        layout.write("amd64");
        layout
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The same for computers with another architecture.
    pub fn for_platform(self, architecture: &str) -> Self {
        self.write(architecture);
        self
    }

    fn configuration(&self, architecture: &str) -> Vec<u8> {
        let ids: Vec<_> = self.layers.iter().map(|layer| digest(layer)).collect();
        json!({
            "architecture": architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": ids },
        })
        .to_string()
        .into_bytes()
    }

    fn blob(&self, bytes: &[u8], kind: &str) -> Value {
        let digest = digest(bytes);
        let folder = self.path().join("blobs/sha256");
        fs::create_dir_all(&folder).expect("made");
        fs::write(folder.join(&digest[7..]), bytes).expect("written");
        let media_type = format!("application/vnd.oci.image.{kind}");
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    fn write(&self, architecture: &str) {
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|layer| self.blob(&gzip(layer), "layer.v1.tar+gzip"))
            .collect();
        let config = self.blob(&self.configuration(architecture), "config.v1+json");
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        let manifest = self.blob(manifest.to_string().as_bytes(), "manifest.v1+json");
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string();
        fs::write(self.path().join("index.json"), index).expect("written");
        let version = r#"{"imageLayoutVersion":"1.0.0"}"#;
        fs::write(self.path().join("oci-layout"), version).expect("written");
    }

    /// The manifest, from the index.
    pub fn manifest(&self) -> Vec<u8> {
        let index = fs::read(self.path().join("index.json")).expect("an index");
        let index: Value = serde_json::from_slice(&index).expect("JSON");
        self.read(index["manifests"][0]["digest"].as_str().expect("a digest"))
    }

    pub fn read(&self, digest: &str) -> Vec<u8> {
        fs::read(self.path().join("blobs/sha256").join(&digest[7..])).expect("a blob")
    }

    /// Change a byte of the last layer.
    pub fn damage(&self) {
        let manifest: Value = serde_json::from_slice(&self.manifest()).expect("JSON");
        let layer = manifest["layers"][1]["digest"].as_str().expect("a digest");
        let mut bytes = self.read(layer);
        // In the packed file's time, which no reader looks at.
        bytes[5] ^= 1;
        fs::write(self.path().join("blobs/sha256").join(&layer[7..]), bytes).expect("written");
    }

    /// As `docker save` writes it.
    pub fn saved(&self, tag: &str) -> Vec<u8> {
        let mut archive = Layer::new();
        let file = |archive: Layer, path: &str, bytes: &[u8]| {
            archive.entry(EntryType::Regular, path, 0o644, (0, 0), "", bytes)
        };
        archive = file(archive, "c.json", &self.configuration("amd64"));
        let mut names = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let name = format!("{index}/layer.tar");
            archive = file(archive, &name, layer);
            names.push(name);
        }
        let list = json!([{ "Config": "c.json", "RepoTags": [tag], "Layers": names }]);
        archive = file(archive, "manifest.json", list.to_string().as_bytes());
        archive.0.into_inner().expect("in memory")
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).expect("in memory");
    packed.finish().expect("in memory")
}
