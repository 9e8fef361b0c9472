// The proxy of the srt sandbox, ending TLS, with its own hook for headers putting the credential in.
// node srt.mjs PACKAGE ORIGIN_PEM CERTIFICATE_OUT SECRET PLACEHOLDER
import { readFileSync, writeFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const [, , directory, origin, out, secret, placeholder] = process.argv;
const load = (name) => import(pathToFileURL(`${directory}/dist/sandbox/${name}.js`).href);
const { createHttpProxyServer } = await load('http-proxy');
const { createMitmCA } = await load('mitm-ca');

const mitmCA = createMitmCA({});
const server = createHttpProxyServer({
  filter: (port, host) => host === 'localhost',
  filterRequest: async (request) =>
    new URL(request.url).pathname.startsWith('/v1/') ? { action: 'allow' } : { action: 'deny' },
  mitmCA,
  shouldTerminateTLS: () => true,
  mutateHeaders: (headers) => {
    if (headers.authorization === `Bearer ${placeholder}`) headers.authorization = `Bearer ${secret}`;
  },
  tlsTerminateUpstreamCA: readFileSync(origin, 'utf8'),
});
server.listen(0, '127.0.0.1', () => {
  writeFileSync(out, mitmCA.certPem);
  console.log(server.address().port);
});
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
