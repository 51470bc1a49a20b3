//! An image layout (OCI image specification 1.1) as files in memory. Does no I/O.
//!
//! `manifest.json` beside it is what `docker load` reads where Docker keeps its images itself; containerd, and Docker with
//! containerd's images, read `index.json`.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::archive::{File, Layer, digest};
use super::contents::{ENTRYPOINT, Origin, USER, labels};
use super::reference::Reference;
use crate::machine::Platform;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The image for one platform.
#[derive(Debug)]
pub struct Image {
    pub platform: Platform,
    pub layer: Layer,
}

/// What a registry would hold of one platform's image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    pub platform: Platform,
    /// Layer, configuration and manifest, as they are pulled.
    pub compressed: usize,
    /// The layer as it is on the node's disk.
    pub uncompressed: usize,
}

#[derive(Debug)]
pub struct Layout {
    /// Contents by path.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Of what a registry would know the image by: the manifest, or the index over several.
    pub digest: String,
    pub sizes: Vec<Size>,
}

/// One image, or one index over those of several platforms.
pub fn layout(images: &[Image], origin: &Origin, reference: &Reference) -> Result<Layout> {
    let mut layout = Layout { files: BTreeMap::new(), digest: String::new(), sizes: Vec::new() };
    let mut manifests = Vec::new();
    let mut docker = Vec::new();
    for image in images {
        let (manifest, config) = layout.put_image(image, origin)?;
        // Docker's own archives know one platform for a name: the first.
        let tags = if docker.is_empty() { vec![reference.to_string()] } else { Vec::new() };
        let layers = [path(&digest(&image.layer.compressed))];
        docker.push(json!({"Config": path(&config), "RepoTags": tags, "Layers": layers}));
        manifests.push(manifest);
    }
    let mut top = match <[Value; 1]>::try_from(manifests) {
        Ok([manifest]) => manifest,
        Err(manifests) => layout.put(INDEX, &json(&index(&manifests))?),
    };
    layout.digest = top["digest"].as_str().context("a descriptor has a digest")?.to_owned();
    top["annotations"] = json!({
        "io.containerd.image.name": reference.full(),
        "org.opencontainers.image.ref.name": reference.tag,
    });
    layout.files.insert("index.json".into(), json(&index(&[top]))?);
    layout.files.insert("oci-layout".into(), json(&json!({"imageLayoutVersion": "1.0.0"}))?);
    layout.files.insert("manifest.json".into(), json(&Value::Array(docker))?);
    Ok(layout)
}

fn index(manifests: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
}

fn path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn json(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).context("JSON cannot be written")
}

// === impl Layout ===

impl Layout {
    /// The files, for an archive of them.
    pub fn archived(&self) -> Vec<File> {
        let file = |(path, contents): (&String, &Vec<u8>)| File {
            path: path.clone(),
            mode: 0o644,
            contents: contents.clone(),
        };
        self.files.iter().map(file).collect()
    }

    /// Adds a blob; returns its descriptor.
    fn put(&mut self, media_type: &str, blob: &[u8]) -> Value {
        let digest = digest(blob);
        self.files.insert(path(&digest), blob.to_owned());
        json!({"mediaType": media_type, "digest": digest, "size": blob.len()})
    }

    /// Adds one platform's blobs; returns the descriptor of the manifest, and the digest of the configuration.
    fn put_image(&mut self, image: &Image, origin: &Origin) -> Result<(Value, String)> {
        let Image { platform, layer } = image;
        let labels = labels(origin, *platform);
        let created = jiff::Timestamp::from_second(origin.created).context("the time of creation")?.to_string();
        let config = json(&json!({
            "created": created,
            "architecture": platform.name(),
            "os": "linux",
            "config": {"User": USER, "Entrypoint": [ENTRYPOINT], "WorkingDir": "/", "Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
            "history": [{"created": created, "created_by": "cargo xtask image"}],
        }))?;
        let manifest = json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.put(CONFIG, &config),
            "layers": [self.put(LAYER, &layer.compressed)],
            "annotations": labels,
        }))?;
        self.sizes.push(Size {
            platform: *platform,
            compressed: layer.compressed.len() + config.len() + manifest.len(),
            uncompressed: layer.size,
        });
        let mut descriptor = self.put(MANIFEST, &manifest);
        descriptor["platform"] = json!({"architecture": platform.name(), "os": "linux"});
        Ok((descriptor, digest(&config)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::image::archive::layer;

    fn made(platforms: &[Platform]) -> Layout {
        let images: Vec<Image> = platforms
            .iter()
            .map(|platform| {
                let contents = platform.name().as_bytes().to_vec();
                let file = File { path: "palisade".into(), mode: 0o755, contents };
                Image { platform: *platform, layer: layer(vec![file], 5).expect("memory can be written to") }
            })
            .collect();
        let origin = Origin { revision: "0123456789ab".into(), source: None, created: 5 };
        layout(&images, &origin, &"palisade:1".parse().expect("a name and a tag")).expect("it can be written")
    }

    fn read(layout: &Layout, path: &str) -> Value {
        serde_json::from_slice(&layout.files[path]).expect("it is JSON")
    }

    /// Follows every descriptor below this value; each must say what the blob is. Returns the paths of what was found.
    fn follow(layout: &Layout, value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(said)) = fields.get("digest") {
                    let blob = &layout.files[&path(said)];
                    assert_eq!((said, fields["size"].as_u64()), (&digest(blob), Some(blob.len() as u64)));
                    found.insert(path(said));
                    let inner = serde_json::from_slice(blob).unwrap_or_default();
                    return follow(layout, &inner, found);
                }
                fields.values().for_each(|field| follow(layout, field, found));
            }
            Value::Array(parts) => parts.iter().for_each(|part| follow(layout, part, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn digests_and_sizes_hold_and_nothing_is_left_over() {
        for platforms in [&[Platform::Amd64][..], &[Platform::Arm64], &Platform::ALL] {
            let layout = made(platforms);
            let mut found = BTreeSet::from(["index.json", "oci-layout", "manifest.json"].map(str::to_owned));
            follow(&layout, &read(&layout, "index.json"), &mut found);
            assert_eq!(found, layout.files.keys().cloned().collect());
            assert_eq!(found.len(), 3 + 3 * platforms.len() + usize::from(platforms.len() > 1));
            let top = &read(&layout, "index.json")["manifests"][0];
            assert_eq!(top["digest"], layout.digest);
            assert_eq!(top["annotations"]["io.containerd.image.name"], "docker.io/library/palisade:1");
        }
    }

    #[test]
    fn both_platforms_are_under_one_name() {
        let layout = made(&Platform::ALL);
        let manifests = &read(&layout, &path(&layout.digest))["manifests"];
        let architectures: Vec<&Value> = (0..2).map(|number| &manifests[number]["platform"]["architecture"]).collect();
        assert_eq!(architectures, ["amd64", "arm64"]);
        let docker = read(&layout, "manifest.json");
        assert_eq!((&docker[0]["RepoTags"], &docker[1]["RepoTags"]), (&json!(["palisade:1"]), &json!([])));
    }

    #[test]
    fn sizes_are_those_of_what_is_pulled() {
        let layout = made(&[Platform::Amd64]);
        let blobs = layout.files.iter().filter(|(path, _)| path.starts_with("blobs/"));
        assert_eq!(layout.sizes[0].compressed, blobs.map(|(_, blob)| blob.len()).sum::<usize>());
    }

    #[test]
    fn docker_finds_what_it_reads() {
        let layout = made(&[Platform::Arm64]);
        let docker = &read(&layout, "manifest.json")[0];
        let config = read(&layout, docker["Config"].as_str().expect("a path"));
        assert_eq!((&config["architecture"], &config["created"]), (&json!("arm64"), &json!("1970-01-01T00:00:05Z")));
        assert_eq!(config["config"]["Entrypoint"], json!(["/palisade"]));
        assert!(layout.files.contains_key(docker["Layers"][0].as_str().expect("a path")));
    }

    #[test]
    fn made_twice_it_is_the_same() {
        assert_eq!(made(&Platform::ALL).files, made(&Platform::ALL).files);
    }
}
