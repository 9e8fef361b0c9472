use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rusqlite::Connection;
use store::{Store, StoreError};

use crate::{Place, options, ready};

#[tokio::test]
async fn nobody_else_can_look_into_it() {
    let place = Place::new();
    ready(&place.store, "sb-1").await;
    let _instance = place.store.register().await.unwrap();
    let mut places = vec![place.data()];
    let mut files = 0;
    while let Some(path) = places.pop() {
        let data = std::fs::symlink_metadata(&path).unwrap();
        if data.is_dir() {
            assert_eq!(data.mode() & 0o777, 0o700, "{}", path.display());
            places.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            assert_eq!(data.mode() & 0o177, 0, "{}", path.display());
            files += 1;
        }
    }
    // The database with two journals, the key, the signed head, and the instance's lock.
    assert_eq!(files, 6);
}

#[tokio::test]
async fn a_directory_that_others_can_look_into_is_refused() {
    let place = Place::new();
    let data = place.data();
    place.store.close().await;
    for (path, mode) in [(data.clone(), 0o750), (data.join("state.db"), 0o644)] {
        let before = std::fs::metadata(&path).unwrap().permissions();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let error = Store::open(&data, options()).unwrap_err();
        assert!(matches!(error, StoreError::Directory { .. }), "{error}");
        assert!(error.to_string().contains("chmod"), "{error}");
        std::fs::set_permissions(&path, before).unwrap();
    }
    Store::open(&data, options()).unwrap();
}

#[tokio::test]
async fn a_later_version_and_another_database_are_refused() {
    let place = Place::new();
    let data = place.data();
    place.store.close().await;
    let raw = Connection::open(data.join("state.db")).unwrap();
    let version: i32 = raw.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    raw.pragma_update(None, "user_version", version + 1).unwrap();
    let error = Store::open(&data, options()).unwrap_err();
    assert!(matches!(error, StoreError::Newer { .. }), "{error}");
    raw.pragma_update(None, "user_version", version).unwrap();
    raw.pragma_update(None, "application_id", 1).unwrap();
    let error = Store::open(&data, options()).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
}

#[tokio::test]
async fn a_damaged_database_is_refused() {
    let place = Place::new();
    for number in 0..50 {
        ready(&place.store, &format!("sb-{number}")).await;
    }
    let data = place.data();
    place.store.close().await;
    let path = data.join("state.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let length = bytes.len();
    for byte in &mut bytes[4096..length - 4096] {
        *byte = 0x55;
    }
    std::fs::write(&path, bytes).unwrap();
    let error = Store::open(&data, options()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt(_)), "{error:?}");
    std::fs::write(&path, b"this is not a database at all").unwrap();
    let error = Store::open(&data, options()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt(_)), "{error:?}");
}

#[tokio::test]
async fn a_second_opening_finds_everything() {
    let place = Place::new();
    ready(&place.store, "sb-1").await;
    let before = place.store.read(|view| view.sandbox("sb-1")).await.unwrap();
    let place = place.reopen(options()).await;
    assert_eq!(place.store.read(|view| view.sandbox("sb-1")).await.unwrap(), before);
}
