//! Layers that no honest program makes.

use std::os::unix::fs::PermissionsExt;

use ::tar::EntryType;
use proptest::prelude::*;

use super::{Archive, image};
use crate::image::add::{Wanted, add_layer, finish};
use crate::image::digest::Digest;
use crate::image::document::Descriptor;
use crate::image::error::ImageError;
use crate::image::store::Store;

#[test]
fn a_layer_that_means_harm_is_refused_by_name() {
    let one = |archive: Archive| vec![archive.bytes()];
    let empty = Archive::new;
    let loops = empty()
        .add(EntryType::Symlink, "a", "b", b"")
        .add(EntryType::Symlink, "b", "a", b"")
        .file("a/x", b"");
    let big = vec![b'x'; 2 << 20];
    let mut cut = empty().file("a", &[1; 4000]).bytes();
    cut.truncate(2048);
    let mut sum = empty().file("a", b"").bytes();
    sum[0] = b'b';
    for (layers, why) in [
        (
            one(empty().file("../../etc/passwd", b"")),
            "leads out of the image",
        ),
        (
            one(empty().file("a/../../b", b"")),
            "leads out of the image",
        ),
        (
            one(empty().add(EntryType::Link, "a", "../../etc/shadow", b"")),
            "leads out",
        ),
        (
            one(empty().add(EntryType::Link, "a", "/etc/shadow", b"")),
            "is not there",
        ),
        (
            one(empty().add(EntryType::Link, "a", "", b"")),
            "is not there",
        ),
        (
            one(empty().add(EntryType::Directory, "a", "", b"").add(
                EntryType::Link,
                "b",
                "a",
                b"",
            )),
            "folder",
        ),
        (one(empty().file("a", b"").file("a/b", b"")), "no folder"),
        (
            one(empty().file("/", b"").file(".", b"")),
            "must be a folder",
        ),
        (
            one(empty().add(EntryType::Symlink, "a", "", b"")),
            "text of a link",
        ),
        (one(loops), "too many symbolic links"),
        (one(empty().pax(&[("path", &big)]).file("a", b"")), "1 MiB"),
        (
            one(empty().pax(&[("size", b"99999999999999")]).file("a", b"")),
            "longer than the archive",
        ),
        (
            one(empty().pax(&[("path", &big[..5000])]).file("a", b"")),
            "4095",
        ),
        (
            one(empty().pax(&[("path", &big[..300])]).file("a", b"")),
            "255",
        ),
        (
            one(empty().pax(&[("uid", b"99999999999")]).file("a", b"")),
            "no user",
        ),
        (
            one(empty().pax(&[("mtime", b"x")]).file("a", b"")),
            "no time",
        ),
        (
            one(empty()
                .pax(&[("GNU.sparse.map", b"0,99"), ("GNU.sparse.size", b"9")])
                .file("a", b"x")),
            "does not fit",
        ),
        (vec![cut], "longer than the archive"),
        (vec![sum], "no header of tar"),
        (vec![vec![b'x'; 700]], "no header of tar"),
    ] {
        let error = image(&layers).expect_err(why);
        assert!(error.contains(why), "{why}: {error}");
    }
    // What does no harm: links that lead out are text, and whiteouts of nothing are nothing.
    let odd = empty()
        .add(EntryType::Symlink, "a", "/../../etc/passwd", b"")
        .file(".wh.", b"")
        .file("x/.wh..", b"")
        .file(".wh..wh.plnk", b"")
        .file("/absolute", b"");
    let found = super::files(&[odd.bytes()]);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["a", "absolute"]);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        at in 0..1500usize, with in any::<[u8; 8]>(),
    ) {
        let _ = image(&[bytes.clone()]);
        // A real archive with some bytes changed and the sum made right again.
        bytes = Archive::new().file("a/b", &[1; 600]).add(EntryType::Symlink, "l", "a", b"").bytes();
        bytes[at..at + 8].copy_from_slice(&with);
        for start in [0, 1536] {
            let header = &mut bytes[start..start + 512];
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
        if let Ok(disk) = image(&[bytes]) {
            super::read(&disk);
        }
    }
}

fn store(limit: u64) -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o700)).expect("ours");
    let store = Store::at(folder.path().into(), limit).expect("a store");
    (folder, store)
}

#[test]
fn a_layer_is_what_its_digests_say() {
    let (_folder, store) = store(1 << 20);
    let plain = Archive::new().file("a", b"content").bytes();
    let packed = zstd::encode_all(&plain[..], 3).expect("packed");
    let descriptor = |digest: Digest, size: usize| Descriptor {
        media_type: String::new(),
        digest,
        size: size as u64,
        platform: None,
        annotations: Default::default(),
    };
    let right = descriptor(Digest::of(&packed), packed.len());
    let (id, other) = (Digest::of(&plain), Digest::of(b"other"));
    let add = |packed: &[u8], told: &Descriptor, id: &Digest| {
        let mut from = packed;
        add_layer(
            &store,
            "layer 1",
            Some(told),
            Some(id),
            &mut from,
            &mut |_| {},
        )
    };
    let mut more = packed.clone();
    more.extend(b"more");
    let bomb = zstd::encode_all(&vec![0; 8 << 20][..], 3).expect("packed");
    let bomb_told = descriptor(Digest::of(&bomb), bomb.len());
    let bomb_id = Digest::of(&vec![0; 8 << 20]);
    for (error, why) in [
        (add(&packed, &right, &other), "damaged or was replaced"),
        (
            add(&packed, &descriptor(other.clone(), packed.len()), &id),
            "damaged or was replaced",
        ),
        (
            add(&packed, &descriptor(Digest::of(&packed), 5), &id),
            "layer 1",
        ),
        (add(&more, &right, &id), "layer 1"),
        (add(&packed[..packed.len() - 4], &right, &id), "layer 1"),
        (add(&bomb, &bomb_told, &bomb_id), "HULL_IMAGES_SIZE"),
    ] {
        let error = error.expect_err(why).to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
    assert!(
        !store.has_layer(&id) && !store.has_layer(&bomb_id),
        "nothing is left of them"
    );
    add(&packed, &right, &id).expect("the right one");
    assert!(store.has_layer(&id));
}

/// Adds an image of one layer with so many bytes of data.
fn add_image(store: &Store, name: &str, bytes: usize) -> Result<(), ImageError> {
    let data: Vec<u8> = (0..bytes).map(|at| (at * 7 + name.len()) as u8).collect();
    let plain = Archive::new().file(name, &data).bytes();
    let layer = add_layer(store, "layer", None, None, &mut &plain[..], &mut |_| {})?;
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#
    );
    let wanted = Wanted {
        name: name.into(),
        origin: None,
    };
    finish(store, wanted, config.as_bytes(), None)?;
    store.evict(name);
    Ok(())
}

#[test]
fn images_are_found_shared_and_removed() {
    let (folder, store) = store(1 << 20);
    for name in ["a", "b"] {
        add_image(&store, name, 3000).expect("added");
    }
    let images = store.images();
    assert_eq!(images.len(), 2);
    let b = store.image("b").expect("there");
    let by_id = store.find(b.id.short(), "").expect("by its ID");
    assert_eq!(by_id.len(), 1);
    assert!(store.find("", "").is_err() && store.find("c", "c").is_err());
    assert!(store.files(&b).iter().all(|file| file.exists()));
    store.remove(&by_id).expect("removed");
    assert!(store.files(&b).iter().all(|file| !file.exists()));
    assert!(store.image("a").is_some() && store.image("b").is_none());
    store.remove(&store.images()).expect("removed");
    for inner in ["configs", "layers", "roots", "names", "partial"] {
        let left = std::fs::read_dir(folder.path().join(inner))
            .expect("a folder")
            .count();
        assert_eq!(left, 0, "{inner}");
    }
}

#[test]
fn those_that_were_not_used_for_longest_make_room() {
    let (_folder, store) = store(100 << 10);
    for name in ["a", "b", "c"] {
        add_image(&store, name, 40 << 10).expect("added");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let names: Vec<_> = store.images().into_iter().map(|image| image.name).collect();
    assert_eq!(names.first().map(String::as_str), Some("c"));
    assert!(!names.contains(&"a".into()), "{names:?}");
}
