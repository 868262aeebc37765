// Receives webhooks, and checks each signature with npm's standardwebhooks. Prints one JSON line for each step:
//   {"listening": port}
//   {"verified": {id, contentType, body}}   the signature is right: answered with 204
//   {"refused": message}                    it is not: answered with 400
//
// usage: node webhook_receiver.mjs <secret>
import { createServer } from "node:http";
import { Webhook } from "standardwebhooks";

const webhook = new Webhook(process.argv[2]);
const print = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

const server = createServer(async (request, response) => {
  let text = "";
  for await (const chunk of request) text += chunk;
  try {
    const body = webhook.verify(text, request.headers);
    print({ verified: { id: request.headers["webhook-id"], contentType: request.headers["content-type"], body } });
    response.writeHead(204).end();
  } catch (error) {
    print({ refused: String(error) });
    response.writeHead(400).end();
  }
});
server.listen(0, "127.0.0.1", () => print({ listening: server.address().port }));
