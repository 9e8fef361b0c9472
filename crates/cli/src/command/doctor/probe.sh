# Which programs of an image get through to a host that is looked into. The host is denied everything, and so is
# answered by Sandforge itself, over TLS that it ends: whoever reads that answer trusts the sandbox's
# authority. Prints a line for each program that is there: name, version, answer.

url=https://doctor.example/

# try NAME VERSION COMMAND...: the answer has to be in what the command prints.
try() {
	name=$1 version=$2
	shift 2
	said=$(timeout 30 "$@" 2>&1 </dev/null)
	case $said in
	*egress_denied* | *[Ff]orbidden* | *' 403'*) answer=ok ;;
	*) answer=$(printf '%s' "$said" | tr '\t\n' '  ' | tail -c 300) ;;
	esac
	printf '%s\t%s\t%s\n' "$name" "$version" "${answer:-it says nothing}"
}

has() { command -v "$1" >/dev/null 2>&1; }

# first WORDS...: the first line that a command prints.
first() { "$@" 2>&1 </dev/null | head -n 1 | tr -d '\t'; }

if has curl; then try curl "$(first curl --version)" curl -sS "$url"; fi
if has wget; then try wget "$(first wget --version)" wget -O - "$url"; fi
if has git; then try git "$(first git --version)" git ls-remote "${url}a.git"; fi
if has openssl; then
	try openssl "$(first openssl version)" sh -c \
		'printf "GET / HTTP/1.0\r\nHost: doctor.example\r\n\r\n" | openssl s_client -quiet \
			-verify_return_error -servername doctor.example -connect doctor.example:443'
fi
if has python3; then
	version=$(first python3 --version)
	try python3 "$version" python3 -c "import urllib.request as u; u.urlopen('$url')"
	for module in requests httpx aiohttp; do
		python3 -c "import $module" 2>/dev/null || continue
		case $module in
		aiohttp)
			code="
import aiohttp, asyncio
async def main():
    async with aiohttp.ClientSession(trust_env=True) as s, s.get('$url') as r: print(await r.text())
asyncio.run(main())"
			;;
		*) code="import $module; print($module.get('$url').text)" ;;
		esac
		try "python3 $module" "$version" python3 -c "$code"
	done
	if python3 -m pip --version >/dev/null 2>&1; then
		try pip "$(first python3 -m pip --version)" \
			python3 -m pip download -d /tmp --retries 0 --no-deps "${url}doctor-1-py3-none-any.whl"
	fi
fi
if has node; then
	version=$(first node --version)
	try 'node fetch' "$version" node -e "fetch('$url').then(r => r.text()).then(console.log, e => console.log(e.cause))"
	try 'node https' "$version" node -e "require('https').get('$url', r => r.pipe(process.stdout))"
fi
if has npm; then
	try npm "$(first npm --version)" npm view --fetch-retries=0 --registry "$url" sandforge-doctor
fi
if has deno; then
	try deno "$(first deno --version)" deno eval "console.log(await (await fetch('$url')).text())"
fi
if has bun; then
	try bun "$(first bun --version)" bun -e "console.log(await (await fetch('$url')).text())"
fi
if has ruby; then
	try ruby "$(first ruby --version)" ruby -rnet/http -e "puts Net::HTTP.get(URI('$url'))"
fi
if has perl && perl -MIO::Socket::SSL -MHTTP::Tiny -e 1 2>/dev/null; then
	try perl "$(first perl -e 'print $^V')" \
		perl -MHTTP::Tiny -e "print HTTP::Tiny->new(verify_SSL => 1)->get('$url')->{content}"
fi
if has php; then
	try php "$(first php --version)" php -r "echo file_get_contents('$url');"
fi
if has java; then
	echo "public class Doctor { public static void main(String[] a) throws Exception {
	System.out.println(\"answer \" + ((java.net.HttpURLConnection) new java.net.URL(\"$url\").openConnection()).getResponseCode()); } }" \
		>/tmp/Doctor.java
	try java "$(java -version 2>&1 | grep version | head -n 1)" java /tmp/Doctor.java
fi
if has go; then
	try go "$(first go version)" env GOPROXY="${url%/}" GOFLAGS=-mod=mod GONOSUMDB='*' GOCACHE=/tmp/go \
		GOPATH=/tmp/gopath go list -m -versions example.com/doctor
fi
if has cargo; then
	try cargo "$(first cargo --version)" env CARGO_HOME=/tmp/cargo CARGO_NET_RETRY=0 \
		cargo search --index "sparse+$url" sandforge-doctor
fi
