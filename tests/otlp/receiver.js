// Receives OTLP on loopback and prints it, one line of JSON for each request: first the addresses,
// then what comes. It ends with its standard input, so it never outlives the tests.
'use strict';

const {MockOtlpServer} = require('@elastic/mockotlpserver');

const HOST = '127.0.0.1';

// HTTP requests come as protobufjs messages, gRPC requests as plain objects: the same in the end,
// with bytes as hex and 64-bit numbers as text.
function plain(message) {
    const whole = message.constructor.toObject?.(message) ?? message;
    return JSON.stringify(whole, (_, value) => {
        if (value?.type === 'Buffer') {
            return Buffer.from(value.data).toString('hex');
        }
        if (typeof value?.low === 'number' && typeof value?.high === 'number') {
            const bits = (BigInt(value.high) << 32n) | BigInt(value.low >>> 0);
            return (value.unsigned ? BigInt.asUintN(64, bits) : bits).toString();
        }
        return value;
    });
}

function print(kind, message) {
    process.stdout.write(`{"${kind}":${plain(message)}}\n`);
}

async function main() {
    const server = new MockOtlpServer({
        logLevel: 'error',
        services: ['http', 'grpc'],
        httpHostname: HOST,
        httpPort: 0,
        grpcHostname: HOST,
        grpcPort: 0,
        onTrace: (request) => print('traces', request),
        onMetrics: (request) => print('metrics', request),
    });
    await server.start();
    process.stdin.on('end', () => process.exit(0)).resume();
    process.stdout.write(
        JSON.stringify({http: server.httpUrl.origin, grpc: server.grpcUrl.origin}) + '\n'
    );
}

main();
