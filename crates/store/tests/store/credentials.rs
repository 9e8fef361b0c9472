use api::{Key, Role, Token, TokenQuery};
use audit::Digest;
use store::{Retention, StoreError};

use crate::{Place, at};

fn token(id: &str, workspace: Option<&str>) -> Token {
    Token {
        id: id.into(),
        name: "ci".into(),
        role: Role::Member,
        workspace: workspace.map(str::to_owned),
        operations: None,
        created_at: at(0),
        created_by: "alice".into(),
        expires_at: Some(at(1000)),
        revoked_at: None,
    }
}

#[tokio::test]
async fn a_token_is_found_by_the_digest_of_its_secret_alone() {
    let place = Place::new();
    let hash = Digest::of(b"sf_live_canary");
    let put = token("tok-1", Some("default"));
    let kept = put.clone();
    place.store.write(move |change| change.insert_token(&put, &hash)).await.unwrap();
    let found = place.store.read(move |view| view.token_by_hash(&hash)).await.unwrap();
    assert_eq!(found, Some(kept));
    let other = Digest::of(b"sf_live_other");
    let found = place.store.read(move |view| view.token_by_hash(&other)).await.unwrap();
    assert_eq!(found, None);
    let place = place.reopen(crate::options()).await;
    for file in std::fs::read_dir(place.data()).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let canary = bytes.windows(14).any(|window| window == b"sf_live_canary");
            assert!(!canary, "{}", path.display());
        }
    }
}

#[tokio::test]
async fn a_revoked_token_keeps_the_time_of_it_and_is_listed_on_demand() {
    let place = Place::new();
    let list = |workspace: Option<&str>, all: bool, now: i64| {
        let workspace = workspace.map(str::to_owned);
        let query = TokenQuery { workspace, all, ..TokenQuery::default() };
        let page = place.store.read(move |view| view.tokens(&query, at(now)));
        async { page.await.unwrap().items.into_iter().map(|t| t.id).collect::<Vec<_>>() }
    };
    place
        .store
        .write(|change| {
            change.insert_token(&token("tok-1", Some("one")), &Digest::of(b"1"))?;
            change.insert_token(&token("tok-2", Some("two")), &Digest::of(b"2"))?;
            change.insert_token(&token("tok-3", None), &Digest::of(b"3"))?;
            change.revoke_token("tok-2", at(7))?;
            change.revoke_token("tok-2", at(8))
        })
        .await
        .unwrap();
    assert_eq!(list(None, false, 10).await, ["tok-3", "tok-1"]);
    assert_eq!(list(None, true, 10).await, ["tok-3", "tok-2", "tok-1"]);
    assert_eq!(list(Some("one"), false, 10).await, ["tok-1"]);
    assert_eq!(list(None, false, 1000).await, Vec::<String>::new());
    let revoked = place.store.read(|view| view.token("tok-2")).await.unwrap();
    assert_eq!(revoked.revoked_at, Some(at(7)));
}

#[tokio::test]
async fn a_nonce_is_used_once_for_each_key() {
    let place = Place::new();
    let nonce = |key: &'static str, nonce: &'static str| {
        place.store.write(move |change| change.use_nonce(key, nonce, at(1000)))
    };
    nonce("key-1", "a").await.unwrap();
    nonce("key-1", "b").await.unwrap();
    nonce("key-2", "a").await.unwrap();
    let error = nonce("key-1", "a").await.unwrap_err();
    assert!(matches!(error, StoreError::Replayed), "{error}");
    let prune =
        |now: i64| place.store.write(move |change| change.prune(at(now), &Retention::default(), 2));
    assert_eq!(prune(1000).await.unwrap().rows, 0);
    let first = prune(1001).await.unwrap();
    assert_eq!((first.rows, first.more), (2, true));
    let second = prune(1001).await.unwrap();
    assert_eq!((second.rows, second.more), (1, false));
}

#[tokio::test]
async fn a_key_is_registered_and_revoked() {
    let place = Place::new();
    let key = Key {
        id: "key-1".into(),
        name: "laptop".into(),
        public_key: "0a".repeat(32),
        subject: "alice".into(),
        workspace: None,
        created_at: at(0),
        created_by: "alice".into(),
        expires_at: None,
        revoked_at: None,
    };
    let put = key.clone();
    place.store.write(move |change| change.insert_key(&put)).await.unwrap();
    assert_eq!(place.store.read(|view| view.key("key-1")).await.unwrap(), key);
    place.store.write(|change| change.revoke_key("key-1", at(3))).await.unwrap();
    let listed = place.store.read(|view| view.keys(&TokenQuery::default(), at(4))).await.unwrap();
    assert_eq!(listed.items, []);
    let error = place.store.read(|view| view.key("key-2")).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
}
