//! What the name of one of AWS's hosts says of the service and the region behind it.
//!
//! The service is the label before the region, or the last one where there is no region. What stands
//! before it, the name of a bucket above all, is whoever's choice and says nothing.

use canonical::Name;

/// What all hosts of AWS end with, and the regions that its hosts without a region are signed for.
const SUFFIXES: [(&str, &[&str]); 7] = [
    (".api.amazonwebservices.com.cn", &["cn-north-1", "cn-northwest-1"]),
    (".amazonaws.com.cn", &["cn-north-1", "cn-northwest-1"]),
    (".api.amazonwebservices.eu", &["eusc-de-east-1"]),
    (".amazonaws.eu", &["eusc-de-east-1"]),
    (".amazonaws.com", &["us-east-1"]),
    (".api.aws", &["us-east-1"]),
    (".on.aws", &["us-east-1"]),
];

/// Labels that signatures call otherwise, from botocore's description of all services. What stands
/// first is what most of its clients sign for.
const RENAMED: &[(&str, &[&str])] = &[
    ("account-access-runtime", &["account-access"]),
    ("agent-registry-control", &["agent-registry"]),
    ("agreement-marketplace", &["aws-marketplace"]),
    ("aos", &["es"]),
    ("appconfigdata", &["appconfig"]),
    ("appstream2", &["appstream"]),
    ("appsync-api", &["appsync"]),
    ("arc-recovery-control-config", &["route53-recovery-control-config"]),
    ("bedrock-agent", &["bedrock"]),
    ("bedrock-agent-runtime", &["bedrock"]),
    ("bedrock-agentcore-control", &["bedrock-agentcore"]),
    ("bedrock-data-automation", &["bedrock"]),
    ("bedrock-data-automation-runtime", &["bedrock"]),
    ("bedrock-runtime", &["bedrock"]),
    ("cassandra-streams", &["cassandra"]),
    ("catalog-marketplace", &["aws-marketplace"]),
    ("cloudhsmv2", &["cloudhsm"]),
    ("cloudsearchdomain", &["cloudsearch"]),
    ("cloudwatch-omni", &["cloudwatch"]),
    ("connect", &["connect", "execute-api"]),
    ("contact-lens", &["connect"]),
    ("data-signer", &["signer"]),
    ("ddb", &["dynamodb"]),
    ("deployment-marketplace", &["aws-marketplace"]),
    ("discovery-marketplace", &["aws-marketplace"]),
    ("efs", &["elasticfilesystem"]),
    ("email", &["ses"]),
    ("entitlement-marketplace", &["aws-marketplace"]),
    ("eventsv2", &["events"]),
    ("forecastquery", &["forecast"]),
    ("geo", &["geo", "geo-maps", "geo-places", "geo-routes"]),
    ("iam-toolbox", &["iam"]),
    ("identity-chime", &["chime"]),
    ("importexport", &["IngestionService", "importexport"]),
    ("iot", &["iot", "iotdata", "iotdevicegateway", "iot-jobs-data", "IoTSecuredTunneling"]),
    ("iot-tunneling", &["IoTSecuredTunneling"]),
    ("ivsrealtime", &["ivs"]),
    ("kafka-api", &["kafka"]),
    ("lambda-url", &["lambda"]),
    ("mail-manager", &["ses"]),
    ("marketplace", &["aws-marketplace"]),
    ("media-pipelines-chime", &["chime"]),
    ("meetings-chime", &["chime"]),
    ("memory-db", &["memorydb"]),
    ("messaging-chime", &["chime"]),
    ("metering-marketplace", &["aws-marketplace"]),
    ("migrationhub-config", &["mgh"]),
    ("models-v2-lex", &["lex"]),
    ("oidc", &["sso-oauth"]),
    ("partnercentral-prm", &["partnercentral"]),
    ("personalize-events", &["personalize"]),
    ("personalize-runtime", &["personalize"]),
    ("pinpoint", &["mobiletargeting", "sms-voice"]),
    ("queue", &["sqs"]),
    ("reporting-marketplace", &["aws-marketplace"]),
    ("runtime-v2-lex", &["lex"]),
    ("s3-accelerate", &["s3"]),
    ("s3-accesspoint", &["s3"]),
    ("s3-control", &["s3"]),
    ("s3-external-1", &["s3"]),
    ("s3express-control", &["s3express"]),
    ("servicecatalog-appregistry", &["servicecatalog"]),
    ("sso", &["sso", "awsssoportal"]),
    ("streams-dynamodb", &["dynamodb"]),
    ("timestream-ingest", &["timestream"]),
    ("timestream-query", &["timestream"]),
    ("tunneling", &["IoTSecuredTunneling"]),
    ("voice-chime", &["chime"]),
];

/// Labels of hosts that run what their owners put there, who need no AWS to make a signature theirs.
const TENANTS: [&str; 3] = ["compute", "compute-1", "elb"];

/// A host of AWS.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Endpoint<'a> {
    service: Service<'a>,
    region: Region<'a>,
}

#[derive(Debug, PartialEq, Eq)]
enum Service<'a> {
    Label(&'a str),
    Renamed(&'static [&'static str]),
}

#[derive(Debug, PartialEq, Eq)]
enum Region<'a> {
    One(&'a str),
    Of(&'static [&'static str]),
    /// Buckets of all regions are below the old names of S3.
    Any,
}

impl<'a> Endpoint<'a> {
    /// What a name says, if it is one of AWS's.
    pub(crate) fn of(name: &'a Name) -> Option<Self> {
        let (rest, global) = SUFFIXES
            .iter()
            .find_map(|(suffix, regions)| Some((name.as_str().strip_suffix(suffix)?, *regions)))?;
        let mut labels = rest.rsplit('.').peekable();
        if rest.rsplit('.').take(2).any(is_tenant) {
            return None;
        }
        // The name of an interface in somebody's own network: `vpce-1a2b.SERVICE.REGION.vpce`.
        let is_interface = labels.next_if_eq(&"vpce").is_some();
        let last = labels.next()?;
        if is_region(last) {
            labels.next_if_eq(&"dualstack");
            let service = Service::of(without_fips(labels.next()?));
            return Some(Self { service, region: Region::One(last) });
        }
        if is_interface {
            return None;
        }
        match last {
            "us-gov" => {
                let region = labels.next_if(|label| is_region(label)).unwrap_or("us-gov-west-1");
                let service = Service::of(without_fips(labels.next()?));
                return Some(Self { service, region: Region::One(region) });
            }
            "global" => {
                let service = Service::of(without_fips(labels.next()?));
                return Some(Self { service, region: Region::Of(global) });
            }
            "s3" | "s3-accelerate" => {
                return Some(Self { service: Service::Renamed(&["s3"]), region: Region::Any });
            }
            "dualstack" if labels.peek() == Some(&"s3-accelerate") => {
                return Some(Self { service: Service::Renamed(&["s3"]), region: Region::Any });
            }
            _ => {}
        }
        if let Some(region) = last.strip_prefix("s3-").filter(|rest| is_region(rest)) {
            let service = Service::Renamed(&["s3"]);
            return Some(Self { service, region: Region::One(region) });
        }
        // Some services have it the other way round: `search-x.eu-central-1.es`.
        let region = match labels.peek() {
            Some(&before) if is_region(before) => Region::One(before),
            _ => Region::Of(global),
        };
        Some(Self { service: Service::of(without_fips(last)), region })
    }

    pub(crate) fn takes_service(&self, service: &str) -> bool {
        match &self.service {
            Service::Label(label) => *label == service,
            Service::Renamed(names) => names.contains(&service),
        }
    }

    pub(crate) fn takes_region(&self, region: &str) -> bool {
        match &self.region {
            Region::One(one) => *one == region,
            Region::Of(regions) => regions.contains(&region),
            Region::Any => true,
        }
    }

    /// For a message.
    pub(crate) fn services(&self) -> String {
        match &self.service {
            Service::Label(label) => (*label).into(),
            Service::Renamed(names) => names.join(" or "),
        }
    }

    /// For a message.
    pub(crate) fn regions(&self) -> String {
        match &self.region {
            Region::One(one) => (*one).into(),
            Region::Of(regions) => regions.join(" or "),
            Region::Any => "any region".into(),
        }
    }
}

impl<'a> Service<'a> {
    fn of(label: &'a str) -> Self {
        // `s3express-use1-az4`: buckets of one availability zone.
        if label.starts_with("s3express-") {
            return Self::Renamed(&["s3express"]);
        }
        match RENAMED.binary_search_by_key(&label, |(label, _)| label) {
            Ok(at) => Self::Renamed(RENAMED[at].1),
            Err(_) => Self::Label(label),
        }
    }
}

fn is_tenant(label: &str) -> bool {
    TENANTS.contains(&label) || label.starts_with("s3-website")
}

fn without_fips(label: &str) -> &str {
    label.strip_suffix("-fips").unwrap_or(label)
}

/// `eu-central-1`, `us-gov-west-1`, `eusc-de-east-1`.
fn is_region(label: &str) -> bool {
    let Some((words, number)) = label.rsplit_once('-') else { return false };
    let is_word =
        |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    number.len() == 1
        && number.bytes().all(|byte| byte.is_ascii_digit())
        && words.split('-').all(is_word)
        && words.split('-').count() >= 2
        && words.split('-').next().is_some_and(|first| (2..=5).contains(&first.len()))
}

#[cfg(test)]
mod tests {
    use canonical::Host;

    use super::*;

    fn says(host: &str) -> Option<(String, String)> {
        let host = Host::parse(host).unwrap();
        let endpoint = Endpoint::of(host.name().unwrap())?;
        Some((endpoint.services(), endpoint.regions()))
    }

    #[test]
    fn the_table_can_be_searched() {
        assert!(RENAMED.is_sorted_by_key(|(label, _)| label));
        assert!(RENAMED.iter().all(|(_, names)| !names.is_empty()));
    }

    #[test]
    fn a_host_says_its_service_and_region() {
        for (host, service, region) in [
            ("bedrock-runtime.eu-central-1.amazonaws.com", "bedrock", "eu-central-1"),
            ("bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "bedrock", "us-gov-west-1"),
            ("bedrock-mantle.us-east-1.api.aws", "bedrock-mantle", "us-east-1"),
            ("sqs.us-east-1.amazonaws.com", "sqs", "us-east-1"),
            ("sqs.cn-north-1.amazonaws.com.cn", "sqs", "cn-north-1"),
            ("sqs.cn-north-1.api.amazonwebservices.com.cn", "sqs", "cn-north-1"),
            ("sqs.eusc-de-east-1.amazonaws.eu", "sqs", "eusc-de-east-1"),
            ("api.ecr.us-west-2.amazonaws.com", "ecr", "us-west-2"),
            ("runtime.sagemaker.us-west-2.amazonaws.com", "sagemaker", "us-west-2"),
            ("abc123.execute-api.us-west-2.amazonaws.com", "execute-api", "us-west-2"),
            ("123456789012.ddb.us-east-1.amazonaws.com", "dynamodb", "us-east-1"),
            ("abcdef.lambda-url.eu-west-1.on.aws", "lambda", "eu-west-1"),
            ("search-x-abc.eu-west-1.es.amazonaws.com", "es", "eu-west-1"),
            ("eu-west-1.queue.amazonaws.com", "sqs", "eu-west-1"),
            ("vpce-1a-2b.bedrock-runtime.us-east-1.vpce.amazonaws.com", "bedrock", "us-east-1"),
            ("sts.amazonaws.com", "sts", "us-east-1"),
            ("iam.amazonaws.com", "iam", "us-east-1"),
            ("iam.us-gov.amazonaws.com", "iam", "us-gov-west-1"),
            ("iam.global.api.aws", "iam", "us-east-1"),
            ("route53.amazonaws.com.cn", "route53", "cn-north-1 or cn-northwest-1"),
        ] {
            assert_eq!(says(host), Some((service.into(), region.into())), "{host}");
        }
    }

    #[test]
    fn buckets_say_nothing_of_the_service() {
        for (host, service, region) in [
            ("s3.eu-central-1.amazonaws.com", "s3", "eu-central-1"),
            ("bucket.s3.eu-central-1.amazonaws.com", "s3", "eu-central-1"),
            ("bucket.s3.dualstack.eu-central-1.amazonaws.com", "s3", "eu-central-1"),
            ("bucket.s3-fips.dualstack.us-east-1.amazonaws.com", "s3", "us-east-1"),
            ("bucket.s3-eu-west-1.amazonaws.com", "s3", "eu-west-1"),
            ("bucket.s3.eu-central-1.api.aws", "s3", "eu-central-1"),
            ("sts.us-east-1.s3.eu-central-1.amazonaws.com", "s3", "eu-central-1"),
            ("sts.us-east-1.s3.amazonaws.com", "s3", "any region"),
            ("bucket.s3.amazonaws.com", "s3", "any region"),
            ("bucket.s3-accelerate.amazonaws.com", "s3", "any region"),
            ("bucket.s3-accelerate.dualstack.amazonaws.com", "s3", "any region"),
            ("ap-123456789012.s3-accesspoint.us-west-2.amazonaws.com", "s3", "us-west-2"),
            ("123456789012.s3-control.us-west-2.amazonaws.com", "s3", "us-west-2"),
            (
                "b--use1-az4--x-s3.s3express-use1-az4.us-east-1.amazonaws.com",
                "s3express",
                "us-east-1",
            ),
            ("bucket.vpce-1a-2b.s3.us-east-1.vpce.amazonaws.com", "s3", "us-east-1"),
        ] {
            assert_eq!(says(host), Some((service.into(), region.into())), "{host}");
        }
    }

    #[test]
    fn other_hosts_are_not_aws() {
        for host in [
            "amazonaws.com",
            "evilamazonaws.com",
            "sts.amazonaws.com.evil.example",
            "sts.us-east-1.amazonaws.co",
            "us-east-1.amazonaws.com",
            "storage.example.com",
            "x.vpce.amazonaws.com",
            "ec2-198-51-100-1.compute-1.amazonaws.com",
            "ec2-198-51-100-1.eu-west-1.compute.amazonaws.com",
            "x-123.us-east-1.elb.amazonaws.com",
            "x-123.elb.us-east-1.amazonaws.com",
            "bucket.s3-website-us-east-1.amazonaws.com",
            "bucket.s3-website.eu-central-1.amazonaws.com",
        ] {
            assert_eq!(says(host), None, "{host}");
        }
    }
}
