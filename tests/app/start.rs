//! What keeps a gateway from starting, in words that help.

use graphpost::app;

use crate::rig::Site;

#[tokio::test]
async fn says_what_is_in_the_way() {
    let site = Site::new().await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let failure = |words: &'static [&'static str], change: &dyn Fn(String) -> String| {
        site.configure(change);
        let config = site.config();
        async move {
            let error = app::start(config)
                .await
                .err()
                .expect("it does not start")
                .to_string();
            for word in words {
                assert!(error.contains(word), "{word} in {error}");
            }
        }
    };
    let listener = |it: String| it.replacen("127.0.0.1:0", &address.to_string(), 1);
    failure(&["plain", "another program listens there", "ss -ltnp"], &listener).await;
    let admin = |it: String| {
        it.replace(
            "[admin]\naddress = \"127.0.0.1:0\"",
            &format!("[admin]\naddress = \"{address}\""),
        )
    };
    failure(
        &["admin", "another program listens there", "admin.address"],
        &admin,
    )
    .await;
    // Nothing of the failed starts is left: the same queue opens.
    site.configure(|it| it);
    let gateway = site.start().await;
    failure(&["queue", "in use by process"], &|it| it).await;
    gateway.shutdown().await;
    site.start().await.shutdown().await;
}
